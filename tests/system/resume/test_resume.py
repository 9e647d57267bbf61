"""Runs that are cut short and started again."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.commands import TRAIN, assert_refused, train_arguments
from helpers.forks import Forked, train
from helpers.runs import losses
from helpers.small_shards import write_shards

pytestmark = pytest.mark.slow

DROPOUT = "model.dropout=0.1"  # its random numbers must be repeated as well


def tensors(value: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """Every tensor in a checkpoint, by its path."""
    if isinstance(value, torch.Tensor):
        return {prefix: value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {name: tensor for key, inner in pairs for name, tensor in tensors(inner, f"{prefix}/{key}").items()}


def checkpoint(folder: Path, batch: int) -> dict[str, torch.Tensor]:
    """Weights, averages and optimizer state after `batch` batches."""
    loaded = torch.load(folder / "checkpoints" / f"ba{batch}-rank0.pt", weights_only=False)["state"]
    return tensors({"model": loaded["model"], "optimizers": loaded["optimizers"]})


@pytest.fixture(scope="module")
def undisturbed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    done = train(digits, folder, DROPOUT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trained to 640 images" in done.stdout
    return folder


def test_killed_and_resumed_equals_undisturbed_bit_for_bit(digits: Path, undisturbed: Path, tmp_path: Path):
    folder = tmp_path / "run"
    streamed = (DROPOUT, f"data.remote={digits}", f"data.local={tmp_path / 'cache'}")  # and not read in place
    with Forked(TRAIN, *train_arguments(digits, folder, *streamed)) as process:
        deadline = time.monotonic() + 200
        while not (folder / "checkpoints" / "ba16-rank0.pt").exists():
            assert process.poll() is None and time.monotonic() < deadline, process.output() + process.errors()
            time.sleep(0.01)
    assert not (folder / "checkpoints" / "ba40-rank0.pt").exists()
    done = train(digits, folder, *streamed)
    assert done.returncode == 0, done.stdout + done.stderr

    ours, reference = checkpoint(folder, 40), checkpoint(undisturbed, 40)
    assert ours.keys() == reference.keys()
    assert any(name.startswith("/model/emas.0_100.") for name in ours)
    assert any("exp_avg_sq" in name for name in ours)
    for name, tensor in reference.items():
        assert torch.equal(ours[name], tensor), name
    assert losses(folder) == losses(undisturbed)
    assert sorted(losses(folder)) == list(range(40))
    snapshots = sorted(path.name for path in (undisturbed / "snapshots").iterdir())
    assert len(snapshots) == 4
    for name in snapshots:
        assert (folder / "snapshots" / name).read_bytes() == (undisturbed / "snapshots" / name).read_bytes(), name


def test_a_finished_run_started_again_ends_at_once_and_changes_nothing(digits: Path, undisturbed: Path):
    paths = [*(undisturbed / "checkpoints").glob("ba*"), *(undisturbed / "snapshots").iterdir()]
    before = {path: path.read_bytes() for path in paths}
    done = train(digits, undisturbed, DROPOUT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path: path.read_bytes() for path in paths} == before


def test_a_run_that_must_be_new_refuses_an_old_folder(digits: Path, undisturbed: Path):
    before = sorted(undisturbed.rglob("*"))
    assert_refused(train(digits, undisturbed, DROPOUT, "autoresume=false"), "autoresume=true", str(undisturbed))
    assert sorted(undisturbed.rglob("*")) == before


@pytest.mark.parametrize("nodes", [1, 64], ids=["no rest", "padded"])
def test_an_epoch_ends_and_a_run_resumes_in_the_next(nodes: int, tmp_path: Path):
    """Ten batches are an epoch of the 250 images: checkpoint on its last batch, resume, compare.

    For 64 canonical nodes streaming pads the epoch to 256 samples: to a batch more than a run trains on.
    """
    batch, steps, images = 25, 10, write_shards(tmp_path / "images", samples=250)
    intervals = [f"{key}={steps}ba" for key in ("checkpoints.interval", "ema.snapshot_interval", "logging.interval")]
    sizes = (f"global_batch_size={batch}", f"data.num_canonical_nodes={nodes}", "optimizer.rampup=0", *intervals)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(images, whole, *sizes, f"duration={steps + 3}ba").returncode == 0
    assert train(images, parts, *sizes, f"duration={steps}ba").returncode == 0
    assert train(images, parts, *sizes, f"duration={steps + 3}ba").returncode == 0
    assert losses(parts) == losses(whole)
    assert len(losses(whole)) == steps + 3
    last = f"snapshot-{(steps + 3) * batch:011d}-0.100.safetensors"
    assert (parts / "snapshots" / last).read_bytes() == (whole / "snapshots" / last).read_bytes()


def test_nan_loss_stops_the_run_and_keeps_the_checkpoint_of_before(digits: Path, tmp_path: Path):
    folder = tmp_path / "run"
    assert train(digits, folder, "duration=16ba").returncode == 0
    before = {path.name: path.read_bytes() for path in (folder / "checkpoints").glob("ba*")}
    done = train(digits, folder, "optimizer.ref_lr=1.0e+38", "allow_changes=[optimizer.ref_lr]")
    assert_refused(done, "NaN", "checkpoints", "optimizer.ref_lr")
    assert {path.name: path.read_bytes() for path in (folder / "checkpoints").glob("ba*")} == before
