"""Launching without Slurm: composer and torchrun by hand on two machines; samples by many EMA lengths."""

import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from helpers.commands import BIN, ROOT, TRAIN, free_port, run, started
from helpers.runs import stored_snapshots
from helpers.two_ranks import arguments
from recipe.storage.places import Place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]

TORCHRUN = str(BIN / "torchrun")
SECONDS = 150  # of one start, on a busy machine


def snapshots(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "snapshots").glob("*.safetensors")}


@pytest.fixture
def by_ranks(two_ranks: Place) -> dict[str, bytes]:
    """The snapshots of two ranks on one machine."""
    return {name.removeprefix("snapshots/"): content for name, content in stored_snapshots(two_ranks).items()}


def assert_all_succeed(lines: list[list[str]], log: Path) -> None:
    """Run commands side by side."""
    with ExitStack() as stack:
        processes = [stack.enter_context(started(line, log)) for line in lines]
        assert [process.wait(timeout=SECONDS) for process in processes] == [0] * len(lines), log.read_text()


def on_two_machines(*lines: list[str]) -> list[list[str]]:
    """The commands with a /dev/shm of their own, as on two machines; skips where that is not possible."""
    private = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /dev/shm && exec "$@"', "sh"]
    if subprocess.run([*private, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("two machines on one need root and mount namespaces")
    return [[*private, *line] for line in lines]


@pytest.mark.soak
def test_composer_by_hand_on_two_machines(by_ranks: dict[str, bytes], digits: Path, tmp_path: Path):
    """In the end the same bits as on one machine."""
    start = [str(BIN / "composer"), "-n", "1", "--world_size", "2"]
    meet = ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    run_arguments = arguments(digits, tmp_path / "run")
    lines = [[*start, "--node_rank", str(node), *meet, str(TRAIN), *run_arguments] for node in (0, 1)]
    assert_all_succeed(on_two_machines(*lines), tmp_path / "log")
    assert snapshots(tmp_path / "run") == by_ranks


@pytest.mark.soak
def test_torchrun_on_two_machines(by_ranks: dict[str, bytes], digits: Path, tmp_path: Path):
    meet = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    run_arguments = arguments(digits, tmp_path / "run")
    lines = [[TORCHRUN, *meet, f"--node-rank={node}", str(TRAIN), *run_arguments] for node in (0, 1)]
    assert_all_succeed(on_two_machines(*lines), tmp_path / "log")
    assert snapshots(tmp_path / "run") == by_ranks


@pytest.mark.soak
def test_samples_by_many_lengths(by_ranks: dict[str, bytes], digits: Path, tmp_path: Path):
    """launch/array_eval.sh without Slurm: all lengths, one after another."""
    folder = tmp_path / "run" / "snapshots"
    folder.mkdir(parents=True)
    for name, content in by_ranks.items():
        (folder / name).write_bytes(content)
    line = [str(ROOT / "launch" / "array_eval.sh"), str(folder.parent), "0.08,0.1:0.12:0.02"]
    done = run([*line, "--seeds", "0-3", "--steps", "3"], timeout=SECONDS, env={"OUT": str(tmp_path / "out")})
    assert done.returncode == 0, done.stdout + done.stderr
    for length in ("0.080", "0.100", "0.120"):
        assert (tmp_path / "out" / f"{length}.png").is_file()
        assert len(list((tmp_path / "out" / length).glob("*.png"))) == 4
