"""The command that measures: each of its four ways, on ranks, and what it refuses before work begins."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from helpers.documented import ALL, after_script, matching, placed, sized
from helpers.forks import run_forked
from helpers.random_inception import random_inception
from helpers.small_snapshots import DATASET, NETWORK, refused_in_process, small_network, stored
from recipe import evaluate, sample
from recipe.evaluation.evaluate_options import gen_parser, metrics_of, ref_parser
from recipe.evaluation.reference import About
from recipe.evaluation.results import Results, title
from recipe.evaluation.statistics_files import open_reference, write_reference
from recipe.preparation.sources.digits import embedded_digits
from recipe.sampling.drawing_options import check_drawing
from recipe.sampling.preset_options import settle_preset
from recipe.weights.snapshots import SnapshotInfo, save_snapshot, snapshot_name

PIXELS = ("--features", "helpers.feature_networks:pixels", "--device", "cpu")
DIGITS = ("digits", "--resolution", 8, "--num", 300)
NAMES = ("fd", "precision", "recall", "density", "coverage")


def run(*words: object) -> None:
    """A command in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["evaluate.py", *map(str, words)])
        evaluate.main()


def values(path: Path) -> list[dict[str, Any]]:
    runs = json.loads(path.read_text())["runs"]
    return [{name: value for name, value in found.items() if name != "name"} for found in runs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot, and statistics of 300 digits of its size, with features."""
    folder = tmp_path_factory.mktemp("evaluate")
    info = SnapshotInfo(NETWORK, 1000, 0.05, DATASET)
    save_snapshot(folder / snapshot_name(1000, 0.05), stored(small_network(0), torch.float32), info)
    run("ref", *DIGITS, "--keep-features", 200, "--out", folder / "ref.safetensors", *PIXELS)
    return folder


def snapshot(folder: Path) -> Path:
    return folder / snapshot_name(1000, 0.05)


def test_ref(folder: Path):
    reference = open_reference(str(folder / "ref.safetensors"), "any")
    about, found = reference.about, reference.found
    assert (about.features, about.resolution, about.source) == ("helpers.feature_networks:pixels", 8, "digits")
    assert about.images_per_class == {str(digit): 30 for digit in range(10)}
    assert found.count == 300 and found.features is not None and found.features.shape == (200, 48)
    digits, _ = embedded_digits(8)
    taken = torch.from_numpy(digits[[index * 5000 // 300 for index in range(300)]]).float() / 255
    expected = torch.nn.functional.adaptive_avg_pool2d(taken, 4).flatten(1).repeat(1, 3).double()
    torch.testing.assert_close(found.mean, expected.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.covariance, torch.cov(expected.T), rtol=1e-5, atol=1e-7)
    spread = expected[[index * 300 // 200 for index in range(200)]]
    torch.testing.assert_close(found.features.double(), spread, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["folder", "a.zip", "a.tar", "a.npz"])
def test_gen_equals_calc_of_what_sample_stores(
    kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = ["--steps", "2", "--batch-size", "16", "--labels", "random"]
    where = ["--out", str(tmp_path / kind), "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["sample.py", str(snapshot(folder)), "--seeds", "30-99", *where, *options])
    sample.main()
    common = ["--ref", folder / "ref.safetensors", "--metrics", "fd,pr,dc", *PIXELS]
    run("calc", tmp_path / kind, *common, "--out", tmp_path / "calc.json")
    run("gen", snapshot(folder), *common, *options, "--num", 70, "--first-seed", 30, "--out", tmp_path / "gen.json")
    (calculated,), (generated,) = values(tmp_path / "calc.json"), values(tmp_path / "gen.json")
    assert set(calculated) == set(NAMES) and calculated["fd"] > 0.1
    assert generated == pytest.approx(calculated, rel=1e-10)


def test_several_runs(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Each is of seeds of its own; the best, mean and spread are of all."""
    options = ["--ref", folder / "ref.safetensors", "--steps", 1, "--num", 40, *PIXELS]
    run("gen", snapshot(folder), *options, "--runs", 3, "--first-seed", 7, "--out", tmp_path / "all.json")
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["seeds", "7-46", "seeds", "47-86", "seeds", "87-126", "best", "mean", "std"]
    found = json.loads((tmp_path / "all.json").read_text())
    fds = [entry["fd"] for entry in found["runs"]]
    assert len(set(fds)) == 3 and found["summary"]["fd"]["best"] == min(fds)
    assert found["summary"]["fd"]["mean"] == pytest.approx(np.mean(fds))
    assert found["summary"]["fd"]["std"] == pytest.approx(np.std(fds, ddof=1))
    assert table[1].split()[:2] == ["FD", "(pixels)"] and table[1].split()[-3] == f"{min(fds):.5g}"
    run("gen", snapshot(folder), *options, "--first-seed", 47, "--out", tmp_path / "second.json")
    assert values(tmp_path / "second.json")[0]["fd"] == pytest.approx(fds[1], rel=1e-10)
    assert found["drawn_by"]["num_steps"] == "1" and found["reference"]["num"] == 300 and found["num"] == 40


def write_pictures(path: Path, count: int, noise: int, seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
    pictures = generator.integers(100, 120 + noise, (count, 8, 8, 3), dtype=np.uint8)
    np.savez(path, arr_0=pictures)
    return path


def test_calc_of_two_sets_and_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The same number, from pictures and from two files of statistics."""
    one, other = (write_pictures(tmp_path / f"{noise}.npz", 60, noise, noise) for noise in (10, 60))
    run("calc", one, other, *PIXELS, "--metrics", "fd,dc", "--out", tmp_path / "two.json")
    for path in one, other:
        run("ref", path, "--out", tmp_path / f"{path.stem}.safetensors", "--keep-features", 60, *PIXELS)
    files = [tmp_path / f"{path.stem}.safetensors" for path in (one, other)]
    run("compare", *files, "--metrics", "fd,dc", "--device", "cpu", "--out", tmp_path / "compared.json")
    (first,), (second,) = values(tmp_path / "two.json"), values(tmp_path / "compared.json")
    assert first == pytest.approx(second, rel=1e-12) and first["fd"] > 1e-3
    run("calc", one, "--ref", files[1], *PIXELS, "--metrics", "dc,fd", "--out", tmp_path / "against.json")
    assert values(tmp_path / "against.json")[0] == pytest.approx(first, rel=1e-12)
    assert "FD (pixels)" in capsys.readouterr().out


def test_statistics_for_others(folder: Path, tmp_path: Path):
    run("ref", *DIGITS, "--out", tmp_path / "ref.npz", *PIXELS)
    ours = load_file(folder / "ref.safetensors")
    with np.load(tmp_path / "ref.npz") as file:
        assert np.array_equal(file["mu"], ours["mean"]) and np.array_equal(file["sigma"], ours["covariance"])


def test_decoding_in_processes_changes_nothing(folder: Path, tmp_path: Path):
    run("ref", *DIGITS, "--out", tmp_path / "a.safetensors", "--workers", 2, *PIXELS)
    ours, theirs = load_file(folder / "ref.safetensors"), load_file(tmp_path / "a.safetensors")
    torch.testing.assert_close(ours["covariance"], theirs["covariance"], rtol=1e-12, atol=1e-15)


def test_names():
    """FID is of Inception's features alone, FD_DINOv2 of DINOv2's."""
    assert [title("fd", name) for name in ("inception", "dinov2", "dinov2-pil")] == ["FID", "FD_DINOv2", "FD_DINOv2"]
    assert title("fd", "helpers.feature_networks:efficientnet_lite0") == "FD (efficientnet_lite0)"
    assert [title("kid", name) for name in ("inception", "dinov2", "a:b")] == ["KID", "KD_DINOv2", "KD (b)"]
    one = Results("calc", "inception", [("out", {"fd": 2.5, "is": 100.0})])
    assert one.table().splitlines() == ["                 out", "FID              2.5", "Inception score  100"]


@pytest.mark.slow
def test_ranks_change_nothing(folder: Path, tmp_path: Path):
    """As processes of a launch: within 1e-10, and each result is said once. All metrics: test_judging.py."""
    common = [*PIXELS, "--metrics", "fd,pr,dc", "--ref", folder / "ref.safetensors"]
    commands = {
        "ref": (2, ["ref", *DIGITS, "--keep-features", 200, *PIXELS], ".safetensors"),
        "calc": (2, ["calc", "digits", "--resolution", 8, "--num", 90, *common], ".json"),
        "gen": (4, ["gen", snapshot(folder), *common, "--num", 72, "--runs", 2, "--steps", 1], ".json"),
    }
    for name, (ranks, words, suffix) in commands.items():
        one, several = (tmp_path / f"{name}-{count}{suffix}" for count in (1, ranks))
        run(*words, "--out", one)
        done = run_forked("evaluate.py", *words, "--out", several, ranks=ranks)
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(done.stdout.splitlines()) == (1 if name == "ref" else 6), done.stdout
        if name == "ref":
            ours, alone = load_file(several), load_file(one)
            assert torch.equal(ours["features"], alone["features"])
            torch.testing.assert_close(ours["covariance"], alone["covariance"], rtol=1e-10, atol=1e-14)
        else:
            for ours, alone in zip(values(several), values(one), strict=True):
                assert ours == pytest.approx(alone, rel=1e-10)


@pytest.mark.slow
def test_real_digits_with_a_real_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Halves of the digits are far nearer to each other than to noised copies, and further with more noise."""
    digits = np.repeat(embedded_digits(32)[0][::10].transpose(0, 2, 3, 1), 3, axis=3)
    half, other = digits[::2], digits[1::2]
    generator = np.random.default_rng(0)
    network = ("--features", "helpers.feature_networks:efficientnet_lite0", "--device", "cpu")
    reference, pictures, found = tmp_path / "half.safetensors", tmp_path / "other.npz", []
    np.savez(tmp_path / "half.npz", arr_0=half)
    run("ref", tmp_path / "half.npz", "--out", reference, "--keep-features", len(half), *network)
    for noise in 0, 10, 30, 90:
        noised = (other + noise * generator.standard_normal(other.shape)).clip(0, 255).astype(np.uint8)
        np.savez(pictures, arr_0=noised)
        out = tmp_path / f"{noise}.json"
        run("calc", pictures, "--ref", reference, *network, "--metrics", "fd,pr", "--out", out)
        found += values(out)
    fds, precision = ([each[name] for each in found] for name in ("fd", "precision"))
    with capsys.disabled():
        print(
            f"\nFD (efficientnet_lite0) of halves of the digits with noise 0, 10, 30, 90: {fds}; precision {precision}"
        )
    assert fds == sorted(fds) and precision == sorted(precision, reverse=True)
    assert 2 * fds[0] < fds[2] and 5 * fds[0] < fds[3] and precision[0] > 0.5 > 0.1 > precision[3]
    assert "FD (efficientnet_lite0)" in capsys.readouterr().out


# The page


PLACES = ("data/photos", "out", "ref.safetensors", "fid.json", "one.safetensors", "other.safetensors", "SNAPSHOT")


@pytest.mark.slow
def test_the_page(folder: Path, tmp_path: Path):
    """Its commands as they stand, with Inception's random weights, few images and other places."""
    weights = random_inception(tmp_path)
    places = {name: tmp_path / name for name in PLACES} | {"SNAPSHOT": snapshot(folder)}
    for name, seed in ("data/photos", 0), ("out", 1):
        (tmp_path / name).mkdir(parents=True)
        for index, pixels in enumerate(np.random.default_rng(seed).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)):
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    said = []
    for command in matching(r"python recipe/evaluate\.py .*"):
        _, (name, *words) = after_script(command)
        sizes = {"--device": "cpu"}
        if name != "compare":
            sizes |= {"--weights": weights.folder, "--accept-weights": "any"}
        if name == "gen":
            sizes |= {"--num": 2, "--steps": 1, "--runs": 2}
        if name == "compare":
            for place in words:
                shutil.copy(tmp_path / "ref.safetensors", tmp_path / place)
        run(name, *sized(placed(words, places), sizes))
        said.append(name)
    assert said == ["ref", "calc", "gen", "compare"]
    results = json.loads((tmp_path / "fid.json").read_text())
    assert results["title"] == "FID" and results["summary"]["fd"]["best"] > 0


def test_commands_that_need_a_cluster(capsys: pytest.CaptureFixture[str]):
    """Their options exist, and go together."""
    commands = [command for _, command, marked in ALL if marked and "recipe/evaluate.py" in command]
    parsers = {"ref": ref_parser, "gen": gen_parser}
    for command in commands:
        _, (name, *words) = after_script(command)
        arguments = parsers[name]().parse_args(words)
        if name == "gen":
            assert metrics_of(arguments) == ["fd"] and check_drawing(arguments).num_steps == 32
            assert (arguments.num, arguments.runs, arguments.labels) == (50_000, 3, "random")
    assert len(commands) == 2


# What is refused

REFUSED = {
    "no command": ([], "COMMAND: must be one of ref, calc, gen, compare"),
    "misspelt command": (["clac"], "clac: must be one of ref, calc, gen, compare"),
    "unknown metric": (["gen", "SNAPSHOT", "--ref", "REF", "--metrics", "fid"], "--metrics fid: must be among fd, kid"),
    "a metric twice": (["gen", "SNAPSHOT", "--ref", "REF", "--metrics", "fd,fd"], "names one twice"),
    "few for kid": (
        ["gen", "SNAPSHOT", "--ref", "REF", "--metrics", "kid", "--num", "100"],
        "--metrics kid: needs at least 1000 pictures, but --num asks for 100",
    ),
    "few in the reference": (
        ["gen", "SNAPSHOT", "--ref", "REF", "--metrics", "kid", "--num", "1000"],
        "--metrics kid: needs at least 1000 pictures, but REF keeps the features of 200",
    ),
    "few pictures": (["calc", "FEW", "--ref", "REF", "--metrics", "dc"], "needs at least 6 pictures, but FEW has 4"),
    "no classifier": (["calc", "REAL", "--ref", "REF", "--metrics", "is"], "--metrics is: needs a classifier"),
    "more than there are": (["calc", "FEW", "--ref", "REF", "--num", "9"], "--num 9: FEW has only 4 pictures"),
    "against nothing": (["calc", "FEW"], "--ref FILE or OTHER: name one of the two"),
    "against both": (["calc", "FEW", "FEW", "--ref", "REF"], "--ref FILE or OTHER: name one of the two"),
    "other size": (["calc", "LARGE", "--ref", "REF"], "LARGE and REF differ in resolution (12 and 8)"),
    "two other sizes": (["calc", "LARGE", "FEW"], "LARGE and FEW have 12 and 8 pixels; give --resolution"),
    "other crop": (
        ["calc", "LARGE", "--ref", "REF", "--resolution", "8", "--crop", "none"],
        "differ in crop (none and center-crop)",
    ),
    "crop of nothing": (["calc", "FEW", "--ref", "REF", "--crop", "none"], "--crop none: needs --resolution"),
    "other features": (
        ["calc", "FEW", "--ref", "REF", "--features", "helpers.feature_networks:efficientnet_lite0"],
        "holds statistics of the features helpers.feature_networks:pixels, not helpers",
    ),
    "network of another size": (["gen", "SNAPSHOT", "--ref", "LARGE_REF"], "differ in resolution (8 and 12)"),
    "no reference": (["gen", "SNAPSHOT", "--ref", "nowhere.safetensors"], "nowhere.safetensors: there is no such file"),
    "reference of pictures": (["gen", "SNAPSHOT", "--ref", "FEW"], "FEW: holds no arrays mu and sigma that can"),
    "no snapshot": (["gen", "nowhere.safetensors", "--ref", "REF"], "nowhere.safetensors: no such snapshot"),
    "idle guide": (["gen", "SNAPSHOT", "--ref", "REF", "--guide", "a"], "does nothing at --guidance 1"),
    "no such pictures": (["calc", "nowhere", "--ref", "REF"], "nowhere: there is no such folder or archive"),
    "no pictures": (["calc", "REF", "--ref", "REF"], "REF: is neither a folder, nor a ZIP, nor a tar"),
    "result of no kind": (["calc", "FEW", "--ref", "REF", "--out", "a.txt"], "--out a.txt: must end with the kind"),
    "result that is there": (["calc", "FEW", "--ref", "REF", "--out", "THERE"], "is there already; name another file"),
    "statistics that are there": (["ref", "FEW", "--out", "REF"], "--out REF: is there already; name another file"),
    "features in arrays": (["ref", "FEW", "--out", "a.npz", "--keep-features", "2"], "--keep-features 2: cannot be"),
    "more features than pictures": (
        ["ref", "FEW", "--out", "a.safetensors", "--keep-features", "9"],
        "--keep-features 9: FEW has only 4 pictures",
    ),
    "damaged picture": (["ref", "DAMAGED", "--out", "a.safetensors"], "DAMAGED: b.png is not an image; take it away"),
    "pictures of two sizes": (["ref", "MIXED", "--out", "a.safetensors"], "MIXED: b.png has 12x12 pixels, but the"),
    "score of statistics": (["compare", "REF", "REF", "--metrics", "is"], "--metrics is: is of pictures, not of"),
    "statistics that differ": (["compare", "REF", "LARGE_REF"], "differ in resolution (8 and 12)"),
    "without features": (
        ["compare", "REF", "MOMENTS", "--metrics", "pr"],
        "--metrics pr: needs the features themselves, which MOMENTS",
    ),
    "option of another command": (["ref", "FEW", "--out", "a.safetensors", "--runs", "3"], "unrecognized arguments"),
}


@pytest.fixture(scope="module")
def places(folder: Path) -> dict[str, str]:
    """Files that the refusals are about."""
    write_pictures(folder / "few.npz", 4, 9)
    write_pictures(folder / "real.npz", 12, 9)
    np.savez(folder / "large.npz", arr_0=np.zeros((4, 12, 12, 3), dtype=np.uint8))
    reference = open_reference(str(folder / "ref.safetensors"), "any")
    found, about = reference.found, reference.about
    large = About(about.features, about.digest, 12)
    write_reference(str(folder / "large.safetensors"), large, found)
    write_reference(str(folder / "moments.safetensors"), about, type(found)(300, found.mean, found.covariance))
    (folder / "there.json").write_text("{}")
    for name, second in ("damaged", b"\x89PNG broken"), ("mixed", None):
        (folder / name).mkdir()
        for letter, size in ("a", 8), ("b", 12), ("c", 8):
            Image.new("RGB", (size, size)).save(folder / name / f"{letter}.png")
        if second is not None:
            (folder / name / "b.png").write_bytes((folder / name / "a.png").read_bytes()[:40] + second)
    names = {
        "LARGE_REF": "large.safetensors",
        "REAL": "real.npz",
        "REF": "ref.safetensors",
        "FEW": "few.npz",
        "LARGE": "large.npz",
        "THERE": "there.json",
        "DAMAGED": "damaged",
        "MIXED": "mixed",
        "MOMENTS": "moments.safetensors",
    }
    return {name: str(folder / file) for name, file in names.items()} | {"SNAPSHOT": str(snapshot(folder))}


@pytest.mark.parametrize(("words", "said"), REFUSED.values(), ids=REFUSED)
def test_refusals(words: list[str], said: str, places: dict[str, str], monkeypatch, capsys, tmp_path: Path):
    """One line each, before anything is drawn or written."""
    monkeypatch.setattr("recipe.evaluate.judge_network", None)
    monkeypatch.chdir(tmp_path)
    for name, place in places.items():
        said = said.replace(name, place)
    words = [places.get(word, word) for word in words]
    if words and words[0] in ("ref", "calc", "gen", "compare"):
        given = PIXELS[2:] if "--features" in words or words[0] == "compare" else PIXELS
        words += given
    assert said in refused_in_process(evaluate, list(words), monkeypatch, capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["calc FEW", "gen SNAPSHOT"])
def test_a_network_that_only_a_file_names_is_not_imported(command: str, places: dict[str, str], monkeypatch, capsys):
    words = [places.get(word, word) for word in command.split()]
    said = refused_in_process(evaluate, [*words, "--ref", places["REF"], "--device", "cpu"], monkeypatch, capsys)
    network = PIXELS[1]
    assert f"ref.safetensors is of a network of your own, {network}; add --features {network}" in said


def test_the_network_is_that_of_the_reference(places: dict[str, str], monkeypatch, capsys, tmp_path: Path):
    """Statistics of DINOv2 need no --features: what is missing are its weights, not Inception's."""
    reference = open_reference(places["REF"], "any")
    write_reference(str(tmp_path / "dino.safetensors"), About("dinov2", "0" * 64, 8), reference.found)
    words = ["calc", places["FEW"], "--ref", str(tmp_path / "dino.safetensors"), "--weights", str(tmp_path)]
    said = refused_in_process(evaluate, [*words, "--device", "cpu"], monkeypatch, capsys)
    assert "holds no dinov2_vitl14_pretrain.pth" in said


def test_the_options_of_drawing_are_samples_own():
    """What decides an image is written once, and has the same defaults."""
    of_sample, of_gen = sample.arguments_parser().known(), gen_parser().known()
    own = {"--seeds", "--out", "--subdirs", "--grid", "--columns", "--zoom", "--overwrite", "--preset", "--weights"}
    assert set(of_sample) - own <= set(of_gen)
    ours = gen_parser().parse_args(["SNAPSHOT", "--ref", "REF"])
    theirs = sample.arguments_parser().parse_args(["SNAPSHOT", "--out", "OUT"])
    settle_preset(theirs)
    for option in set(of_sample) - own - {"--help"}:
        name = option[2:].replace("-", "_")
        assert getattr(ours, name) == getattr(theirs, name), option
