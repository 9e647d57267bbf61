"""What runs on one machine share: segments in /dev/shm, and signals to a whole process tree."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.spawned import wait_as_a_worker
from recipe.data import shared_memory
from recipe.data.shared_memory import clear_stale

pytestmark = pytest.mark.alone  # a run that starts beside them deletes their segments

HOLD = """
import mmap, sys, time
with open(sys.argv[1], "r+b") as file:
    held = mmap.mmap(file.fileno(), 0)
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""
SEGMENTS = ("locals", "barrier", "epoch_data")


@pytest.fixture
def prefix() -> Iterator[str]:
    """Six digits that no run uses."""
    name = f"{900_000 + os.getpid() % 90_000:06d}"
    yield name
    for path in shared_memory.FOLDER.glob(f"{name}_*"):
        path.unlink()


def make(prefix: str, local: str) -> list[Path]:
    """The segments of a run that streams to the folder `local`."""
    paths = [shared_memory.FOLDER / f"{prefix}_{name}" for name in SEGMENTS]
    for path in paths:
        path.write_bytes(b"\0\0\0\0" + local.encode() + f"\0{int(prefix)}".encode())
    return paths


def hold(path: Path, seconds: float) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path), str(seconds)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_stale_segments_go_and_live_ones_stay(prefix: str, tmp_path: Path):
    """Live are all of a run that has mapped one; other files are none of ours."""
    paths = make(prefix, str(tmp_path / "data"))
    other = shared_memory.FOLDER / f"{prefix}_of_someone_else"
    other.touch()
    with hold(paths[1], 60) as process:
        clear_stale(str(tmp_path / "elsewhere"))
        assert all(path.exists() for path in paths)
        process.kill()
    clear_stale(str(tmp_path / "elsewhere"))
    assert not any(path.exists() for path in paths) and other.exists()


def test_waits_for_a_dying_run_on_the_same_folder(prefix: str, tmp_path: Path):
    paths = make(prefix, str(tmp_path / "data"))
    with hold(paths[0], 2):
        began = time.monotonic()
        clear_stale(str(tmp_path / "data"))
        assert time.monotonic() - began > 1
        assert not any(path.exists() for path in paths)


def test_does_not_wait_for_ever(prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shared_memory, "PATIENCE", 0.1)
    paths = make(prefix, str(tmp_path / "data"))
    with hold(paths[0], 60) as process:
        clear_stale(str(tmp_path / "data"))
        assert all(path.exists() for path in paths)  # streaming then says that the folder is in use
        process.kill()


def test_loaders_worker_ends_with_its_rank_alone():
    """A signal of anyone else, as Slurm sends to all processes of a job, leaves it at work."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    worker = context.Process(target=wait_as_a_worker, args=(ready,), daemon=True)
    worker.start()
    assert ready.wait(60) and worker.pid is not None
    for number in ("TERM", "USR1"):
        subprocess.run(["sh", "-c", f"kill -{number} {worker.pid}"], check=True)
    worker.join(1)
    assert worker.is_alive()
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(20)
    assert worker.exitcode == 0
