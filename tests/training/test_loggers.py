"""Metrics and sample grids reach TensorBoard, W&B and MLflow."""

from pathlib import Path

import pytest

from helpers.commands import tensorboard
from helpers.forks import train

pytestmark = pytest.mark.slow


def test_all_loggers_at_once(digits: Path, tmp_path: Path):
    folder, store = tmp_path / "run", tmp_path / "mlflow"
    overrides = (
        "duration=25ba",
        "checkpoints.interval=25ba",
        "ema.snapshot_interval=25ba",
        "samples.interval=25ba",
        "samples.num_steps=2",
        "samples.count=10",
        "logging.wandb={project: test, mode: offline}",
        f"logging.mlflow={{experiment: test, tracking_uri: {store.as_uri()}}}",
    )
    done = train(digits, folder, *overrides)
    assert done.returncode == 0, done.stdout + done.stderr

    events = tensorboard(folder)
    scalars = set(events.Tags()["scalars"])
    assert {"loss/train/total", "loss/train/denoising", "lr-Adam/group0", "gradients/nonfinite"} <= scalars
    assert {"throughput/samples_per_sec", "throughput/flops_per_sec"} <= scalars
    rates = [event.value for event in events.Scalars("lr-Adam/group0")]
    assert rates[:3] == pytest.approx([0, 0.001, 0.002], rel=1e-6)  # ramp-up over 10 batches
    assert {"samples/raw", "samples/ema-0.050", "samples/ema-0.100"} <= set(events.Tags()["images"])
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))
    assert list(store.glob("*/*/metrics/loss/train/total"))
    assert list(store.glob("*/*/artifacts/**/*.png")) or list(store.glob("*/*/artifacts/**/*.webp"))
