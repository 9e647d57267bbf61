"""sweep.py from the command line: the values of single commands, resumed, shared by tasks and ranks, refusals."""

import csv
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from helpers.commands import ROOT, command_line, run
from helpers.documented import after_script, matching, placed, sized
from helpers.forks import run_forked
from helpers.small_snapshots import NETWORK, refused_in_process, small_network, stored, write_run
from recipe import reconstruct
from recipe import sweep as command
from recipe.edm2.samplers.generate import SamplerSettings
from recipe.edm2.samplers.guidance import Interval
from recipe.evaluation.features import by_import_path
from recipe.evaluation.judging import Judge, judge_network
from recipe.evaluation.measuring import measure
from recipe.evaluation.reference import About, load_reference, save_reference
from recipe.evaluation.sweep import read_results
from recipe.ranks import Ranks
from recipe.sampling.distributed import Drawer, Wanted
from recipe.storage.addresses import open_place
from recipe.weights.snapshots import SnapshotInfo, load_network, save_snapshot, snapshot_name

CPU = torch.device("cpu")
FEATURES = "helpers.feature_networks:pixels"
FEW = ("--features", FEATURES, "--num", 24, "--steps", 3, "--device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, a second run and a network to guide by, and statistics of noise."""
    folder = tmp_path_factory.mktemp("place")
    write_run(folder / "run", 8)
    write_run(folder / "weak", 8)
    guide = SnapshotInfo(NETWORK, 1000, 0.05)
    save_snapshot(folder / snapshot_name(1000, 0.05), stored(small_network(5), torch.float32), guide)
    network = by_import_path(FEATURES, CPU)
    noise = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = measure(network, [(range(64), noise)], Ranks())
    assert found is not None
    save_reference(folder / "ref.safetensors", About(network.name, network.digest, 8), found)
    return folder


def swept(place: Path, out: object, *options: object, ranks: int = 1, run: object = None) -> str:
    arguments = (run or place / "run", "--ref", place / "ref.safetensors", *FEW, "--out", out, *options)
    done = run_forked("sweep.py", *map(str, arguments), ranks=ranks)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def values(out: Path) -> dict[tuple[float, ...], float]:
    """The distance at each point of a table, by length, guidance, interval and the guide's length."""
    found = {}
    with open(out / "table.csv") as file:
        for row in csv.DictReader(file):
            point = (float(row[name] or 0) for name in ("sigma_rel", "guidance", "from", "to", "guide_sigma_rel"))
            found[tuple(point)] = float(row["fd"])
    return found


GRID = ("--sigma-rel", "0.08,0.12", "--guidance", "1,2", "--interval", "all,0.3:100")


@pytest.fixture(scope="module")
def grid(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of a grid, guided by averages of another run."""
    out = tmp_path_factory.mktemp("grid") / "out"
    said = swept(place, out, *GRID, "--guide", place / "weak", "--guide-sigma-rel", "0.08,0.12", "--guide-nimg", 6000)
    assert "<- best" in said and "10 points" in said and "sigma_rel.png" in said
    return out


@pytest.mark.slow
def test_values_are_those_of_files(place: Path, grid: Path, tmp_path: Path):
    """As of reconstruct.py's files, drawn and judged one by one."""
    found = values(grid)
    assert len(found) == 2 * (1 + 2 * 2) and len(set(found.values())) == len(found)
    for name, length, nimg in (("run", 0.12, None), ("weak", 0.12, 6000)):
        reconstruct.run(place / name, [length], nimg, tmp_path / name, torch.float16, force=False)
    net, _ = load_network(tmp_path / "run" / snapshot_name(8000, 0.12, "posthoc"))
    guide, _ = load_network(tmp_path / "weak" / snapshot_name(6000, 0.12, "posthoc"))
    reference = load_reference(place / "ref.safetensors", "ref")
    judge, wanted = (
        Judge(reference, by_import_path(FEATURES, CPU), ["fd"]),
        [Wanted(seed, seed % 10) for seed in range(24)],
    )
    for guidance, interval, point in (
        (1.0, Interval(), (0.12, 1.0, 0.0, float("inf"), 0.0)),
        (2.0, Interval(0.3, 100), (0.12, 2.0, 0.3, 100.0, 0.12)),
    ):
        settings = SamplerSettings(num_steps=3, guidance=guidance, interval=interval)
        expected = judge_network(judge, Drawer(net, settings, guide), wanted, Ranks(), 64)
        assert found[point] == expected["fd"]


@pytest.mark.slow
def test_figures_and_settings_lie_beside_the_results(grid: Path):
    names = {path.name for path in grid.iterdir()}
    figures = {f"{name}.{kind}" for name in ("sigma_rel", "guidance", "profiles") for kind in ("png", "svg")}
    assert names == figures | {"table.csv", "sweep.json", "points"}
    (settings,) = json.loads((grid / "sweep.json").read_text()).values()
    assert settings["images"] == "24" and settings["guide_nimg"] == "6000" and settings["metric"] == "fd"
    assert settings["num_steps"] == "3" and "guidance" not in settings


@pytest.mark.slow
def test_tasks_and_ranks_give_the_same(place: Path, grid: Path, tmp_path: Path):
    """Three tasks, one of them on two ranks; then the table, for which nothing is measured again."""
    guide = ("--guide", place / "weak", "--guide-sigma-rel", "0.08,0.12", "--guide-nimg", 6000)
    for task in range(3):
        said = swept(place, tmp_path, *GRID, *guide, "--task", f"{task}/3", ranks=2 if task == 0 else 1)
        assert f"task {task} of 3" in said
    files = sorted((tmp_path / "points").iterdir())
    assert len(files) == 10 and not (tmp_path / "table.csv").exists()
    before = [path.stat().st_mtime_ns for path in files]
    swept(place, tmp_path, *GRID, *guide)
    assert [path.stat().st_mtime_ns for path in files] == before
    assert values(tmp_path) == pytest.approx(values(grid), rel=1e-9)


@pytest.mark.slow
def test_a_search_from_s3_to_s3(place: Path, bucket_folder: str):
    """It ends where neither neighbour is better; the same command again measures nothing."""
    store = open_place(bucket_folder)
    for path in (place / "run" / "snapshots").iterdir():
        store.upload(f"run/snapshots/{path.name}", path)
    search = ("--sigma-rel", "0.06:0.14:0.01", "--search", "coordinate")
    said = swept(place, f"{bucket_folder}/out", *search, run=f"{bucket_folder}/run/")
    found = {entry.name: entry.modified for entry in store.list("out/points/")}
    assert 3 < len(found) <= 9 and f"{len(found)} points" in said
    assert swept(place, f"{bucket_folder}/out", *search, run=f"{bucket_folder}/run") == said
    assert {entry.name: entry.modified for entry in store.list("out/points/")} == found
    costs = {round(result.point.sigma_rel, 3): result.values["fd"] for result in read_results(store.child("out"))}
    best = min(costs, key=lambda length: costs[length])
    assert next(line.split()[0] for line in said.splitlines() if "<- best" in line) == f"{best:.3f}"
    sides = {round(best + side, 3) for side in (-0.01, 0.01)}
    assert {side for side in sides if 0.06 <= side <= 0.14} <= costs.keys()  # both were looked at


@pytest.mark.slow
def test_other_settings_are_not_mixed_in(place: Path, grid: Path):
    before = {path.name: path.read_bytes() for path in grid.rglob("*") if path.is_file()}
    done = run_forked(
        "sweep.py",
        *map(str, (place / "run", "--ref", place / "ref.safetensors", *FEW, *GRID, "--out", grid)),
        "--guide",
        str(place / snapshot_name(1000, 0.05)),
    )
    assert done.returncode == 2 and "guide is" in done.stderr and "name another --out" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert {path.name: path.read_bytes() for path in grid.rglob("*") if path.is_file()} == before


LENGTHS = ("--sigma-rel", "0.1")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--sigma-rel", "0.3"), "--sigma-rel 0.3: must be above 0 and below 12^-0.5"),
        (("--sigma-rel", "0.0625"), "--sigma-rel 0.0625: must have at most 3 decimals"),
        (("--sigma-rel", "x"), "--sigma-rel: 'x' is not a list of numbers"),
        (("--sigma-rel", "0.01"), "the error of the profile exceeds 5%"),
        ((*LENGTHS, "--guidance=-1"), "--guidance -1: must be at least 0"),
        ((*LENGTHS, "--interval", "all"), "--interval all: does nothing at --guidance 1"),
        ((*LENGTHS, "--guidance", "2", "--interval", "3:1"), "--interval 3:1: must be two noise levels"),
        ((*LENGTHS, "--guidance", "2", "--interval", "1:1.001"), "holds none of the 32 noise levels"),
        ((*LENGTHS, "--guide", "GUIDE"), "does nothing at --guidance 1"),
        ((*LENGTHS, "--guidance", "2", "--guide", "run"), "needs --guide-sigma-rel"),
        ((*LENGTHS, "--guidance", "2", "--guide-sigma-rel", "0.1"), "is of a --guide that is a run"),
        ((*LENGTHS, "--guidance", "2", "--labels", "none"), "does nothing without labels"),
        ((*LENGTHS, "--nimg", "1500"), "nimg 1500: must be the time of a snapshot"),
        ((*LENGTHS, "--nimg", "x"), "--nimg"),
        ((*LENGTHS, "--metric", "fid"), "fid: must be among"),
        ((*LENGTHS, "--metric", "kid"), "kid"),
        ((*LENGTHS, "--task", "3/3"), "I must be from 0 to N - 1"),
        ((*LENGTHS, "--task", "1"), "must be I/N"),
        ((*LENGTHS, "--task", "0/2", "--search", "coordinate"), "is of a grid"),
        ((*LENGTHS, "--num", "1"), "--num 1: must be at least 2"),
        ((*LENGTHS, "--metric", "fd,is"), "needs a classifier"),
        ((*LENGTHS, "--labels", "12"), "--labels 12: the network knows the classes 0 to 9"),
        ((*LENGTHS, "--vae", "x"), "--vae x:"),
        ((*LENGTHS, "--ref", "none.safetensors"), "none.safetensors"),
    ],
)
def test_bad_input(
    options: tuple[str, ...], said: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(place)
    given = ["--features", FEATURES, *([] if "--ref" in options else ["--ref", "ref.safetensors"])]
    out = tmp_path / "out"
    assert said in refused_in_process(command, ["run", *given, *options, "--out", out], monkeypatch, capsys)
    assert not out.exists()


def test_no_run(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    arguments = [tmp_path / "none", "--ref", place / "ref.safetensors", *LENGTHS]
    assert "there are no snapshots" in refused_in_process(command, arguments, monkeypatch, capsys)
    shutil.copytree(place / "run" / "snapshots", tmp_path / "run" / "snapshots")
    (tmp_path / "file").write_text("")
    arguments = [tmp_path / "run", "--ref", place / "ref.safetensors", *LENGTHS, "--out", tmp_path / "file"]
    assert "is a file, not a folder" in refused_in_process(command, arguments, monkeypatch, capsys)

    arguments = [tmp_path / "run", "--ref", place / "ref.safetensors", *LENGTHS, "--device", "cpu"]
    said = f"ref.safetensors is of a network of your own, {FEATURES}; add --features {FEATURES}"
    assert said in refused_in_process(command, arguments, monkeypatch, capsys)


@pytest.mark.slow
def test_documented_commands(place: Path, tmp_path: Path):
    """A grid, a search that goes on with its results, and the page that shows them."""
    run = tmp_path / "runs" / "edm2"
    shutil.copytree(place / "run", run)
    places = {"runs": tmp_path / "runs", "digits.safetensors": place / "ref.safetensors"}
    sizes = {"--features": FEATURES, "--num": 16, "--steps": 2, "--sigma-rel": "0.08,0.10", "--device": "cpu"}
    *sweeps, report = matching(r"python recipe/(sweep|report)\.py runs/edm2.*")
    assert len(sweeps) == 2
    for documented in sweeps:
        guided = {"--guidance": "1,2"} if "--guidance" in documented else {}
        script, words = after_script(documented)
        done = run_forked(ROOT / script, *sized(placed(words, places), sizes | guided))
        assert done.returncode == 0, done.stdout + done.stderr
    found = {path.stem for path in (run / "sweeps" / "fd" / "points").iterdir()}
    assert len(found) in (3, 4)
    script, words = after_script(report)
    done = run_forked(ROOT / script, *placed(words, places))
    assert done.returncode == 0 and "1 sweeps" in done.stdout, done.stdout + done.stderr
    assert (run / "report.html").stat().st_size > 10_000


@pytest.mark.soak
@pytest.mark.slow
def test_the_documented_example(tmp_path: Path):
    """From digits to the table: the same commands on fewer steps, snapshots and pictures."""
    places = {
        "data/digits8": tmp_path / "digits8",
        "digits8.safetensors": tmp_path / "ref.safetensors",
        "runs": tmp_path / "runs",
    }
    images = {"duration": 640, "ema.snapshot_interval": 80, "checkpoints.interval": 640, "samples.interval": 320}
    training = images | {"optimizer.rampup": 160, "save_folder": tmp_path / "runs" / "noisy"}
    sweeping = {"--nimg": 640, "--num": 20, "--steps": 3}
    said = ""
    for pattern, sizes in (
        (r"python recipe/prepare\.py digits --out data/digits8 .*", {}),
        (r"python recipe/train\.py .* run_name=noisy .*", training),
        (r"PYTHONPATH=tests python recipe/evaluate\.py ref .*", {}),
        (r"PYTHONPATH=tests python recipe/sweep\.py .*", sweeping),
    ):
        (documented,) = matching(pattern)
        script, words = after_script(documented)
        assert all(size in documented for size in sizes if size != "save_folder"), documented
        variables = dict(word.split("=", 1) for word in shlex.split(documented)[:1] if "=" in word)
        line = command_line(Path(script).name, *sized(placed(words, places), sizes))
        done = run(line, env=variables)
        assert done.returncode == 0, done.stdout + done.stderr
        said = done.stdout
    assert len(re.findall(r"^ +0\.\d{3} +\d", said, re.MULTILINE)) == 8 and "<- best" in said, said
