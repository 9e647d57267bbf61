"""Each setting reaches what it is for: values unlike every default, looked for in the parts that a run is made of."""

from pathlib import Path
from typing import Any

import pytest
import torch
from composer.devices import DeviceCPU

from helpers.commands import train_arguments
from helpers.run_folders import run_folder
from recipe.configuration.reader import read_config
from recipe.configuration.schema import FSDP
from recipe.data.checks import TrainingData, check_data
from recipe.storage.local import LocalPlace
from recipe.training.callbacks import EMASnapshots, SampleGrid
from recipe.training.preflight import Start
from recipe.training.sharding import degrees
from recipe.training.trainer import algorithms, build_model, callbacks, optimizer, set_numerics

UNUSUAL = [
    "seed=11",
    "duration=9ba",
    "optimizer.ref_lr=0.021",
    "optimizer.ref_batches=33",
    "optimizer.rampup=7ba",
    "optimizer.betas=[0.83,0.97]",
    "optimizer.eps=3e-7",
    "loss.P_mean=-0.7",
    "loss.P_std=1.3",
    "loss.label_dropout=0.15",
    "ema.sigma_rels=[0.07,0.12]",
    "ema.snapshot_interval=5ba",
    "ema.snapshot_dtype=float32",
    "ema.snapshot_keep=3",
    "samples.interval=6ba",
    "samples.count=13",
    "samples.num_steps=9",
    "samples.sampler=dpmpp_3m_sde",
    "samples.eta=0.4",
    "samples.guidance=1.7",
    "samples.guidance_interval=[0.3,40]",
    "samples.batch_size=7",
    "model.dropout=0.2",
    "model.sigma_data=0.6",
    "model.dtype=bfloat16",
    "numerics.tf32=true",
]


@pytest.fixture(scope="module")
def start(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Start:
    folder = tmp_path_factory.mktemp("run")
    config = read_config(train_arguments(digits, folder, *UNUSUAL))
    data: TrainingData = check_data(config)
    return Start(config, data, LocalPlace(folder), None)


def test_model(start: Start):
    model, parallelism = build_model(start.config, DeviceCPU())
    assert parallelism is None
    assert [sigma_rel for sigma_rel, _ in model.averages()] == [0.07, 0.12]
    assert (model.net.sigma_data, model.net.dtype) == (0.6, torch.bfloat16)
    assert {block.dropout for block in model.net.modules() if hasattr(block, "dropout")} == {0.2}
    first = model.net.state_dict()["unet.out_conv.weight"].clone()
    other = start.config.model_copy(update={"seed": 12})
    assert not torch.equal(build_model(other, DeviceCPU())[0].net.unet.out_conv.weight, first)
    assert torch.equal(build_model(start.config, DeviceCPU())[0].net.unet.out_conv.weight, first)


@pytest.mark.parametrize(
    ("shard", "ranks", "expected"), [(None, 8, (1, 8)), (2, 8, (4, 2)), (4, 8, (2, 4)), (8, 8, (1, 8)), (1, 2, (2, 1))]
)
def test_replicas_and_ranks_that_share_a_copy(shard: int | None, ranks: int, expected: tuple[int, int]):
    assert degrees(FSDP(shard=shard), ranks) == expected


def test_optimizer(start: Start):
    model, _ = build_model(start.config, DeviceCPU())
    (group,) = optimizer(start.config.optimizer, model).param_groups
    assert (group["betas"], group["eps"]) == ((0.83, 0.97), 3e-7)
    assert (group["weight_decay"], group["amsgrad"]) == (0, False)
    assert len(group["params"]) == len(list(model.net.parameters()))


def test_algorithms(start: Start):
    found: dict[str, Any] = {type(algorithm).__name__: algorithm for algorithm in algorithms(start)}
    assert found["InverseSqrtLR"].schedule == {
        "global_batch_size": 16,
        "ref_lr": 0.021,
        "ref_batches": 33,
        "rampup_nimg": 7 * 16,
    }
    batch = {
        "image": torch.zeros(4096, 1, 8, 8),
        "label": torch.zeros(4096, dtype=torch.int64),
        "id": torch.arange(4096),
    }
    drawn = batch
    for algorithm in algorithms(start):
        if hasattr(algorithm, "draw"):
            drawn = drawn | algorithm.draw(drawn, 0)  # pyright: ignore[reportAttributeAccessIssue]
    assert drawn["sigma"].log().mean().item() == pytest.approx(-0.7, abs=5 * 1.3 / 64)
    assert drawn["sigma"].log().std().item() == pytest.approx(1.3, rel=5 / 90)
    assert (drawn["label"] == -1).float().mean().item() == pytest.approx(0.15, abs=5 * 0.36 / 64)


def test_callbacks(start: Start, tmp_path: Path):
    found = {type(callback): callback for callback in callbacks(start, run_folder(tmp_path), DeviceCPU())}
    stored, grid = found[EMASnapshots], found[SampleGrid]
    assert isinstance(stored, EMASnapshots) and isinstance(grid, SampleGrid)
    assert (stored.interval, stored.dtype, stored.keep) == (5 * 16, torch.float32, 3)
    assert (stored.network, stored.facts) == (start.config.network_arguments(), start.data.facts)
    assert stored.network["sigma_data"] == 0.6
    assert (grid.interval, grid.count, grid.batch_size) == (6 * 16, 13, 7)
    assert grid.settings == start.config.samples.settings()
    assert (grid.settings.num_steps, grid.settings.guidance) == (9, 1.7)
    assert (grid.settings.sampler, grid.settings.eta, grid.settings.interval) == ("dpmpp_3m_sde", 0.4, (0.3, 40))


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("reduced", [False, True])
def test_numerics(start: Start, tf32: bool, reduced: bool):
    cuda: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    settings = {"tf32": tf32, "reduced_precision_reduction": reduced}
    numerics = start.config.numerics.model_copy(update=settings)
    before = (cuda.allow_tf32, cudnn.allow_tf32, cuda.allow_fp16_reduced_precision_reduction)
    bf16 = cuda.allow_bf16_reduced_precision_reduction
    try:
        set_numerics(numerics, on_gpu=False)
        assert (cuda.allow_tf32, cudnn.allow_tf32) == (tf32, tf32)
        assert cuda.allow_fp16_reduced_precision_reduction == reduced
        assert cuda.allow_bf16_reduced_precision_reduction == reduced
    finally:
        cuda.allow_tf32, cudnn.allow_tf32, cuda.allow_fp16_reduced_precision_reduction = before
        cuda.allow_bf16_reduced_precision_reduction = bf16


def test_spans_are_of_whole_batches_of_an_epoch(start: Start):
    assert (start.data.samples, start.steps_per_epoch, start.epoch) == (5000, 312, 4992)
    assert start.batches(start.config.duration) == "9ba"
    two_epochs = read_config(train_arguments(Path("d"), Path("f"), "duration=2ep")).duration
    assert (start.images(two_epochs), start.batches(two_epochs)) == (2 * 4992, "624ba")
