"""Runs on two sharded ranks, kept in a real S3 server, that lose a rank, all ranks or the server at random moments."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.commands import ROOT, composer, run, train_arguments
from helpers.object_store import ObjectStore
from helpers.runs import stored_snapshots
from recipe.storage.addresses import open_place
from recipe.storage.ownership import OwnedError, Ownership
from recipe.storage.places import Place
from recipe.weights.checkpoints import newest_whole
from recipe.weights.snapshots import SnapshotReader, list_snapshots

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

STEPS = 240
SETTINGS = (
    f"duration={STEPS}ba",
    "fsdp={}",
    "ema.snapshot_interval=6ba",
    "checkpoints.interval=8ba",
    "checkpoints.keep=2",
    "logging.tensorboard=false",
    "loss.label_dropout=0.1",
)
KILLS = ["rank", "server", "server", "all", "server"] * 4
PREEMPTED = 75


def command(digits: Path, folder: str, *overrides: str) -> list[str]:
    return composer(2, *train_arguments(digits, Path("unused"), f"save_folder={folder}", *SETTINGS, *overrides))


def ranks_of(launcher: subprocess.Popen) -> list[int]:
    """Process ids of the ranks, by rank."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(child) for child in children]


@contextmanager
def started(line: list[str], store: ObjectStore, log: Path) -> Iterator[subprocess.Popen]:
    """A training in its own process group, which is gone afterwards."""
    with open(log, "a") as file:
        process = subprocess.Popen(
            line, cwd=ROOT, env=os.environ | store.environment, stdout=file, stderr=file, start_new_session=True
        )
        try:
            yield process
        finally:
            end(process)


def end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until(condition: Callable[[], object], process: subprocess.Popen, timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def assert_whole(place: Place) -> None:
    """Every listed snapshot passes its checksums."""
    for snapshot in list_snapshots(f"{place.address}/snapshots"):
        with SnapshotReader(snapshot.path) as reader:
            reader.read_all()


@pytest.fixture(scope="module")
def undisturbed(digits: Path, object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run without disturbance: what all others must end in."""
    folder = f"s3://{object_store.bucket}/undisturbed"
    done = run(command(digits, folder), env=object_store.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    place = open_place(folder)
    assert len(place.list("snapshots/")) == STEPS // 6 * 2
    return place


def assert_same_end(place: Place, undisturbed: Place) -> None:
    """Bit for bit: every snapshot of every time, and every part of the last checkpoint."""
    own, others = stored_snapshots(place), stored_snapshots(undisturbed)
    assert own.keys() == others.keys()
    assert [name for name in own if own[name] != others[name]] == []
    ends = [newest_whole(there.child("checkpoints")) for there in (place, undisturbed)]
    assert ends[0] is not None and ends[1] is not None
    assert (ends[0].batch, ends[0].name) == (ends[1].batch, ends[1].name)


def test_kills_at_random_moments(object_store: ObjectStore, undisturbed: Place, digits: Path, tmp_path: Path):
    chance = random.Random(11)
    folder = f"s3://{object_store.bucket}/killed"
    place = open_place(folder)
    left = list(KILLS)
    chance.shuffle(left)
    listed: set[str] = set()
    while left:
        with started(command(digits, folder), object_store, tmp_path / "log") as process:
            seen = len(place.list("snapshots/"))
            wait_until(lambda seen=seen: len(place.list("snapshots/")) > seen, process)
            while left and process.poll() is None:
                time.sleep(chance.uniform(0, 1.5))
                kind = left.pop()
                if kind == "server":
                    object_store.kill()
                    time.sleep(chance.uniform(0, 2))
                    object_store.start()
                elif kind == "rank":
                    os.kill(chance.choice(ranks_of(process)), signal.SIGKILL)
                    process.wait(timeout=60)
                    assert process.returncode != 0
                else:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        names = {entry.name for entry in place.list("snapshots/")}
        assert listed <= names, "a snapshot that was listed is gone"
        listed = names
        assert_whole(place)
    done = run(command(digits, folder), env=object_store.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_end(place, undisturbed)


def test_preempted_run_saves_and_goes_on(object_store: ObjectStore, undisturbed: Place, digits: Path, tmp_path: Path):
    folder = f"s3://{object_store.bucket}/preempted"
    place = open_place(folder)
    log = tmp_path / "log"
    for number in (signal.SIGTERM, signal.SIGUSR1):
        with started(command(digits, folder), object_store, log) as process:
            seen = len(place.list("snapshots/"))
            wait_until(lambda seen=seen: len(place.list("snapshots/")) > seen, process)
            with pytest.raises(OwnedError, match="belongs to a live run"):  # nobody else may have its folder
                Ownership(place)
            os.kill(ranks_of(process)[1], number)
            assert process.wait(timeout=60) == PREEMPTED, log.read_text()
        assert "saving and stopping after batch" in log.read_text()
        assert place.size("owner.json") is None
    done = run(command(digits, folder), env=object_store.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_end(place, undisturbed)
