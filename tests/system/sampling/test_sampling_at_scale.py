"""sample.py on several ranks, killed at any moment, and on many images: always the same files, in bounded memory."""

import random
import time
from pathlib import Path

import pytest
import torch

from helpers.commands import ROOT, composer, run
from helpers.forks import Forked, run_forked
from helpers.small_snapshots import NETWORK, small_network, stored
from recipe.storage.addresses import open_place
from recipe.weights.snapshots import SnapshotInfo, save_snapshot, snapshot_name

FEW = ("--seeds", "0-39,1000", "--steps", 2, "--churn", 1, "--labels", "random", "--device", "cpu")


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("one") / snapshot_name(1000, 0.05)
    save_snapshot(path, stored(small_network(0), torch.float32), SnapshotInfo(NETWORK, 1000, 0.05))
    return path


def sampled(snapshot: object, *options: object, ranks: int = 1, env: dict[str, str] | None = None) -> str:
    done = run_forked("sample.py", str(snapshot), *map(str, options), ranks=ranks, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(snapshot: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes: the folder, the grid and an archive."""
    out = tmp_path_factory.mktemp("undisturbed")
    sampled(snapshot, *FEW, "--out", out / "a", "--grid", out / "grid.png")
    sampled(snapshot, *FEW, "--out", out / "a.npz")
    found = contents(out)
    assert len(found) == 41 + 1 + 2 and len(set(found.values())) == len(found)
    return found


@pytest.mark.parametrize(("ranks", "batch", "threads"), [(1, 1, 1), (2, 7, 2), (4, 64, 2)])
def test_the_same_bytes(
    ranks: int, batch: int, threads: int, snapshot: Path, undisturbed: dict[str, bytes], tmp_path: Path
):
    options, env = (*FEW, "--batch-size", batch), {"OMP_NUM_THREADS": str(threads)}
    said = sampled(snapshot, *options, "--out", tmp_path / "a", "--grid", tmp_path / "grid.png", ranks=ranks, env=env)
    assert "41 images of seeds 0-39,1000; 41 drawn in" in said
    assert contents(tmp_path) == {name: data for name, data in undisturbed.items() if name != "a.npz"}


def test_from_s3_to_s3(snapshot: Path, undisturbed: dict[str, bytes], bucket_folder: str):
    place = open_place(bucket_folder)
    place.upload(f"run/{snapshot.name}", snapshot)
    address = f"{bucket_folder}/run/{snapshot.name}"
    sampled(address, *FEW, "--out", f"{bucket_folder}/out/a", "--grid", f"{bucket_folder}/out/grid.png", ranks=2)
    sampled(address, *FEW, "--out", f"{bucket_folder}/out/a.npz", ranks=2)
    out = place.child("out")
    assert {entry.name: out.read(entry.name) for entry in out.list()} == undisturbed


def test_ranks_that_may_not_draw(snapshot: Path, tmp_path: Path):
    """Rank 0 refuses for all of them, before any has drawn."""
    sampled(snapshot, *FEW, "--out", tmp_path / "a")
    before = contents(tmp_path)
    (tmp_path / "a" / "000001.png").unlink()
    del before["a/000001.png"]
    done = run_forked("sample.py", snapshot, *map(str, FEW), "--rho", "3", "--out", tmp_path / "a", ranks=2)
    assert done.returncode == 2 and "rho is 7.0 there and 3.0 here" in done.stderr
    assert "Traceback" not in done.stderr and contents(tmp_path) == before


@pytest.mark.slow
def test_by_composer(snapshot: Path, undisturbed: dict[str, bytes], tmp_path: Path):
    options = [*map(str, FEW), "--out", str(tmp_path / "a"), "--grid", str(tmp_path / "grid.png")]
    done = run(composer(2, str(snapshot), *options, script=ROOT / "recipe" / "sample.py"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert contents(tmp_path) == {name: data for name, data in undisturbed.items() if name != "a.npz"}


def end_in_the_same(snapshot: Path, folder: Path, ranks: int, kills: int, chance: random.Random) -> None:
    """Killed at random moments, and started again, on other numbers of ranks too: the same files as undisturbed."""
    options, cut = ["--seeds", "0-99", "--steps", 3, "--device", "cpu", "--out"], 0
    sampled(snapshot, *options, folder / "whole" / "a", "--subdirs", ranks=ranks)
    started = time.monotonic()  # only now: the first one may have waited for the process that forks them
    sampled(snapshot, *options, folder / "whole" / "a.zip", ranks=ranks)
    usual = time.monotonic() - started
    for kill in range(kills):
        for out in (["a.zip"], ["a", "--subdirs"]):
            line = [*options, folder / "killed" / out[0], *out[1:]]
            with Forked("sample.py", snapshot, *map(str, line), ranks=1 + kill % ranks) as process:
                process.ranks()
                time.sleep(chance.uniform(0, usual))
        for path in (folder / "killed").rglob("*.png"):
            if not path.name.startswith("."):
                assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
        cut += contents(folder / "killed") != contents(folder / "whole")
    sampled(snapshot, *options, folder / "killed" / "a.zip", ranks=ranks)
    sampled(snapshot, *options, folder / "killed" / "a", "--subdirs", ranks=ranks)
    assert contents(folder / "killed") == contents(folder / "whole")
    assert cut > 0  # a kill that came too late proves nothing


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed(snapshot: Path, tmp_path: Path):
    end_in_the_same(snapshot, tmp_path, ranks=2, kills=1, chance=random.Random(1))


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_killed_ten_times(snapshot: Path, tmp_path: Path):
    end_in_the_same(snapshot, tmp_path, ranks=2, kills=10, chance=random.Random())


MEASURED = """
import resource
from recipe import sample
sample.main()
print("MiB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def peak_memory(snapshot: Path, folder: Path, count: int, name: str) -> float:
    """MiB of a process that draws `count` images."""
    script = folder / "measured.py"
    script.write_text(MEASURED)
    seeds = f"0-{count - 1}"
    line = [snapshot, "--seeds", seeds, "--steps", "1", "--device", "cpu", "--out", folder / f"{count}-{name}"]
    done = run_forked(script, *line, timeout=7000)
    assert done.returncode == 0, done.stdout + done.stderr
    return float(done.stdout.split("MiB")[1])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_memory_does_not_grow(snapshot: Path, tmp_path: Path):
    """Of 2000 images against 100: all pixels as int64 would be more."""
    few, many = (peak_memory(snapshot, tmp_path, count, "a.npz") for count in (100, 2000))
    assert many - few < 8, (few, many)


@pytest.mark.soak
@pytest.mark.timeout(8000)
def test_memory_of_50_000(snapshot: Path, tmp_path: Path):
    few, many = (peak_memory(snapshot, tmp_path, count, "a.npz") for count in (1000, 50_000))
    print(f"{few:.0f} MiB for 1000 images, {many:.0f} MiB for 50,000")
    assert many - few < 60, (few, many)
