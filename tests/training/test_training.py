"""The method inside a real Composer Trainer: parity with the official code, microbatches, gradient scrubbing."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from composer.core import Callback, Event, State
from composer.loggers import Logger

from helpers.commands import train_arguments
from helpers.golden_data import check_final_weights, relative_error, under
from helpers.small_snapshots import NETWORK
from helpers.training import fit, flat, golden_run, tiny_run
from recipe.configuration.reader import read_config
from recipe.configuration.schema import Config, Loss
from recipe.edm2.networks.precond import Precond
from recipe.training.algorithms import (
    ForcedWeightNorm,
    ScrubGradients,
    scrub_,
    training_algorithms,
)
from recipe.training.inputs import ExampleInputs, dropout_seed
from recipe.training.model import DiffusionModel, unwrap
from recipe.training.run import RunError, check_device
from recipe.training.trainer import speed_monitor


def config_of(*overrides: str) -> Config:
    return read_config(train_arguments(Path("none"), Path("none"), *overrides))


@pytest.mark.parametrize("microbatch", [None, 8])
def test_golden_training_through_trainer(microbatch: int | None):
    model, examples, algorithms, golden, metadata = golden_run()
    betas = tuple(float(value) for value in metadata["adam_betas"].split(","))
    steps = int(metadata["steps"])
    logged = fit(model, examples, algorithms, int(metadata["batch_size"]), steps, betas, microbatch)  # pyright: ignore
    assert logged["loss/train/total"] == pytest.approx(golden["out/loss"].tolist(), rel=1e-5)
    assert logged["lr-Adam/group0"] == pytest.approx(golden["out/lr"].tolist(), rel=1e-12)
    assert logged["gradients/nonfinite"] == [0.0] * steps
    check_final_weights(dict(model.net.named_parameters()), under(golden, "final"))
    for sigma_rel, ema in model.averages():
        check_final_weights(dict(ema.named_parameters()), under(golden, f"ema_{sigma_rel:.3f}"))


def test_golden_training_notices_a_dropped_projection():
    """The replay above can fail: without forced weight normalisation it does."""
    model, examples, algorithms, golden, metadata = golden_run()
    algorithms = [algorithm for algorithm in algorithms if not isinstance(algorithm, ForcedWeightNorm)]
    logged = fit(model, examples, algorithms, int(metadata["batch_size"]), int(metadata["steps"]))
    assert logged["loss/train/total"] != pytest.approx(golden["out/loss"].tolist(), rel=1e-5)


def test_microbatch_size_does_not_matter():
    whole, reference = tiny_run(None)
    for microbatch in (1, 4):
        model, logged = tiny_run(microbatch)
        assert logged["loss/train/total"] == pytest.approx(reference["loss/train/total"], rel=1e-4)
        assert relative_error(flat(model.net), flat(whole.net)) < 1e-3
        for (_, ema), (_, reference_ema) in zip(model.averages(), whole.averages(), strict=True):
            assert relative_error(flat(ema), flat(reference_ema)) < 1e-3


class Poison(Callback):
    """Makes some gradients non-finite after the backward pass of one batch."""

    def __init__(self, batch: int):
        self.batch = batch

    def after_backward(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value == self.batch:
            gradient = unwrap(state.model).net.unet.out_conv.weight.grad
            assert gradient is not None
            gradient.view(-1)[:3] = torch.tensor([float("nan"), float("inf"), float("-inf")])


def test_nonfinite_gradients_are_scrubbed_counted_and_logged(caplog: pytest.LogCaptureFixture):
    model, logged = tiny_run(None, callbacks=(Poison(batch=4),))
    assert logged["gradients/nonfinite"] == [3.0 if batch == 4 else 0.0 for batch in range(12)]
    assert "batch 4: 3 non-finite gradient elements set to 0" in caplog.text
    assert flat(model.net).isfinite().all()


def test_every_kind_of_nonfinite_element_becomes_0():
    gradients = [torch.tensor([float("nan"), 1.5, float("inf")]), torch.tensor([[float("-inf"), -2.0]]), torch.ones(3)]
    assert scrub_(gradients) == 3
    assert [gradient.tolist() for gradient in gradients] == [[0, 1.5, 0], [[0, -2.0]], [1, 1, 1]]


@pytest.mark.parametrize(("shape", "counted"), [(None, 8), ((4,), 8), ((2, 2), 4)], ids=["no mesh", "fsdp", "hsdp"])
def test_elements_on_several_ranks_count_once(
    shape: tuple[int, ...] | None, counted: int, monkeypatch: pytest.MonkeyPatch
):
    """4 ranks, each with 2 such elements in its rows; with replicas, two of them hold the same rows."""
    model = DiffusionModel(Precond(**NETWORK), [0.05])
    for parameter in model.net.parameters():
        parameter.grad = torch.ones_like(parameter)
    weight = model.net.unet.out_conv.weight.grad
    assert weight is not None
    weight.view(-1)[:2] = torch.inf
    mesh = None if shape is None else SimpleNamespace(ndim=len(shape), size=lambda dim: shape[dim])
    state: Any = SimpleNamespace(model=model, fsdp_enabled=True, device_mesh=mesh)
    state.timestamp = SimpleNamespace(batch=SimpleNamespace(value=3))
    logged: list[dict[str, float]] = []
    logger: Any = SimpleNamespace(log_metrics=logged.append)
    monkeypatch.setattr("recipe.training.algorithms.dist.all_reduce", lambda tensor: tensor.mul_(4))
    assert ScrubGradients().apply(Event.AFTER_TRAIN_BATCH, state, logger) == counted
    assert logged == [{"gradients/nonfinite": counted}]
    assert torch.equal(weight.view(-1)[:3], torch.tensor([0.0, 0.0, 1.0]))


def test_scrub_keeps_huge_finite_gradients():
    gradient = torch.tensor([3e38, 3e38, float("nan")])
    assert scrub_([gradient, torch.ones(2)]) == 1
    assert torch.equal(gradient, torch.tensor([3e38, 3e38, 0.0]))
    huge = torch.tensor([3e38, 3e38])  # its norm overflows float32, its elements do not
    assert scrub_([huge]) == 0
    assert torch.equal(huge, torch.tensor([3e38, 3e38]))


def test_learning_rate_is_that_of_the_images_seen_before_the_step():
    _, logged = tiny_run(None)
    expected = [0.01 * min(16 * step / 32, 1) / max(step / 8, 1) ** 0.5 for step in range(12)]
    assert logged["lr-Adam/group0"] == pytest.approx(expected, rel=1e-12)


def test_averages_follow_the_weights_and_nothing_else_does():
    """The EMA after each step against a direct sum of the recorded weights (eq. 127), and raw weights stay raw."""
    recorded: list[torch.Tensor] = []

    class Record(Callback):
        def batch_end(self, state: State, logger: Logger) -> None:
            recorded.append(flat(unwrap(state.model).net).double())

    model, _ = tiny_run(None, callbacks=(Record(),))
    for sigma_rel, ema in model.averages():
        gamma = {0.05: 16.97219860, 0.1: 6.93720394}[sigma_rel]
        expected = torch.zeros_like(recorded[0])
        for step, weights in enumerate(recorded, start=1):
            beta = (1 - 1 / step) ** (gamma + 1)
            expected = beta * expected + (1 - beta) * weights
        assert relative_error(flat(ema), expected) < 1e-6
        assert not any(parameter.requires_grad for parameter in ema.parameters())
    assert torch.equal(flat(model.net).double(), recorded[-1])


def test_algorithms_act_at_their_events():
    """Projection, rate and inputs before the step; scrubbing before the optimizer; averages after it."""
    state = None  # none of them asks for it
    matched = {
        type(algorithm).__name__: [event for event in Event if algorithm.match(event, state)]  # pyright: ignore
        for algorithm in training_algorithms(config_of(), rank=0)
    }
    assert matched == {
        "ForcedWeightNorm": [Event.BATCH_START],
        "InverseSqrtLR": [Event.BATCH_START],
        "ExampleInputs": [Event.BATCH_START, Event.BEFORE_FORWARD],
        "ScrubGradients": [Event.AFTER_TRAIN_BATCH],
        "PowerEMA": [Event.BATCH_END],
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("device=gpu", "device = gpu: PyTorch finds no usable CUDA"),
        ("device_train_microbatch_size=auto", "device_train_microbatch_size = auto"),
    ],
)
def test_a_gpu_that_is_not_there(override: str, message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RunError, match=message):
        check_device(config_of(override))


@pytest.mark.parametrize(
    ("dtype", "tf32", "peak"),
    [("auto", False, 989.5e12), ("bfloat16", True, 989.5e12), ("float32", False, 67e12), ("float32", True, 494.5e12)],
)
def test_mfu_is_relative_to_the_precision_of_the_network(
    dtype: str, tf32: bool, peak: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    config = config_of(f"model.dtype={dtype}", f"numerics.tf32={str(tf32).lower()}")
    assert speed_monitor(config, on_gpu=True).gpu_flops_available == peak
    assert speed_monitor(config, on_gpu=False).gpu_flops_available == 0


def test_dropout_repeats_for_a_batch_and_differs_between_batches_and_ranks():
    """A resumed run draws the dropout of the run that was cut short."""

    assert dropout_seed(5, 3, 0) == dropout_seed(5, 3, 0)
    assert len({dropout_seed(seed, batch, rank) for seed in (5, 6) for batch in (3, 4) for rank in (0, 1)}) == 8


@pytest.mark.parametrize("rank", [0, 1])
def test_the_generator_of_dropout_is_seeded_before_each_step(rank: int):
    drawn: list[torch.Tensor] = []

    class Draw(Callback):
        def before_train_batch(self, state: State, logger: Logger) -> None:
            drawn.append(torch.rand(10))

    torch.manual_seed(3)
    model, examples, *_ = golden_run()
    fit(model, examples, [ExampleInputs(5, Loss(), rank=rank)], 16, 3, callbacks=(Draw(),))
    for batch, numbers in enumerate(drawn):
        torch.manual_seed(dropout_seed(5, batch, rank))
        assert torch.equal(numbers, torch.rand(10))
    assert len(drawn) == 3


def test_batch_for_the_model_is_float_whatever_was_loaded():
    ids, labels = torch.arange(4), torch.arange(4)
    pixels = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    inputs = ExampleInputs(5, Loss())
    batch = inputs.draw({"image": pixels, "label": labels, "id": ids}, batch_number=2)
    assert batch.keys() == {"image", "sigma", "noise", "label", "id"}
    assert torch.equal(batch["image"], pixels.float() / 127.5 - 1)
    assert batch["noise"].shape == batch["image"].shape and batch["sigma"].shape == (4,)
    half = inputs.draw({"image": batch["image"].half(), "label": labels, "id": ids}, batch_number=2)
    assert half["image"].dtype == torch.float32
    assert torch.equal(half["noise"], batch["noise"])
