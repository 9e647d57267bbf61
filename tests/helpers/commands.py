"""Runs the project's commands as a user would, and tiny runs to run them on."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TRAIN = ROOT / "recipe" / "train.py"

TINY_RUN = [
    "run_name=tiny",
    "duration=40ba",
    "global_batch_size=16",
    "data.num_workers=1",
    "data.num_canonical_nodes=1",
    "model.img_resolution=8",
    "model.img_channels=1",
    "model.label_dim=10",
    "model.model_channels=16",
    "model.channel_mult=[1,2]",
    "model.num_blocks=1",
    "model.attn_resolutions=[4]",
    "model.channels_per_head=16",
    "optimizer.ref_batches=20",
    "optimizer.rampup=160",
    "ema.snapshot_interval=20ba",
    "checkpoints.interval=8ba",
    "checkpoints.keep=-1",
    "samples.interval=null",
    "logging.progress_bar=false",
]
"""Overrides of yamls/edm2.yaml: a network of 0.1 M parameters on 8x8 images, 40 steps in a few seconds."""


def command_line(script: str, *arguments: str | int | Path) -> list[str]:
    """The command for a script of recipe/, by Python."""
    return [sys.executable, str(ROOT / "recipe" / script), *map(str, arguments)]


def run(
    command: Sequence[str], timeout: float = 300, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and capture what it prints."""
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | (env or {}), capture_output=True, text=True, timeout=timeout, check=False
    )


@contextmanager
def started(line: Sequence[str], log: Path, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen]:
    """A command that runs in a process group of its own, which is gone afterwards; what it prints is added to `log`."""
    with open(log, "a") as file:
        process = subprocess.Popen(
            line, cwd=ROOT, env=os.environ | (env or {}), stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen) -> None:
    """Kill a process and its group, if it has not ended."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def train_arguments(data: Path, folder: Path, *overrides: str) -> list[str]:
    """Arguments of train.py for the tiny run; later overrides replace earlier ones."""
    chosen = dict(item.split("=", 1) for item in (*TINY_RUN, f"data.local={data}", f"save_folder={folder}", *overrides))
    return [str(ROOT / "yamls" / "edm2.yaml"), *(f"{key}={value}" for key, value in chosen.items())]


def tensorboard(folder: Path) -> EventAccumulator:
    """What a run logged, over all its starts; a batch that was trained twice is there twice, in order."""
    (events,) = (folder / "tensorboard").iterdir()
    accumulator = EventAccumulator(str(events), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    accumulator.Reload()
    return accumulator


def assert_refused(done: subprocess.CompletedProcess[str], *mentions: str) -> None:
    """Bad input: exit status 2, no traceback, and a message with each of `mentions` on stderr."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    for mention in mentions:
        assert mention in done.stderr, done.stderr


def launch(ranks: int, *arguments: str | Path, script: Path = TRAIN) -> list[str]:
    """The command that runs a script on several ranks, or on one.

    For tests in which the launcher does not matter: torchrun starts in 2 seconds, composer in 8. It gives each rank a
    session of its own, so that a signal to its process group does not reach them.
    """
    start = [str(BIN / "torchrun"), f"--nproc-per-node={ranks}", f"--master-port={free_port()}"]
    return [*(start if ranks > 1 else [sys.executable]), str(script), *map(str, arguments)]


def composer(ranks: int, *arguments: str | Path, script: Path = TRAIN) -> list[str]:
    """The same through Composer's launcher."""
    start = [str(BIN / "composer"), "-n", str(ranks), "--master_port", str(free_port())]
    return [*start, str(script), *map(str, arguments)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
