"""The ComposerModel by itself: fresh averages, the loss's two means, what SpeedMonitor counts, and its modes."""

import math
from typing import Any

import pytest
import torch

from helpers.small_snapshots import NETWORK
from helpers.training import flat
from recipe.edm2.networks.flops import macs_per_image
from recipe.edm2.networks.precond import Precond
from recipe.training.inputs import Batch
from recipe.training.model import DiffusionModel


def model(sigma_rels: tuple[float, ...] = (0.05, 0.1)) -> DiffusionModel:
    torch.manual_seed(3)
    return DiffusionModel(Precond(**NETWORK), list(sigma_rels))


def batch(count: int) -> Batch:
    generator = torch.Generator().manual_seed(4)
    return {
        "image": torch.rand(count, 1, 8, 8, generator=generator),
        "noise": torch.randn(count, 1, 8, 8, generator=generator),
        "sigma": torch.randn(count, generator=generator).exp(),
        "label": torch.arange(count) % 10,
        "id": torch.arange(count),
    }


def test_averages_begin_as_copies_with_all_buffers():
    """Made on the meta device they hold anything at first, also where nothing is ever averaged."""
    with torch.device("meta"):
        made = DiffusionModel(Precond(**NETWORK), [0.05, 0.1])
    made.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in made.state_dict().values():
            tensor.fill_(math.nan)
    made.initialize_(seed=1)
    state = made.net.state_dict()
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert any("freqs" in name for name in state)
    for _, average in made.averages():
        found = average.state_dict()
        assert found.keys() == state.keys()
        for name, tensor in state.items():
            assert torch.equal(found[name], tensor), name
            assert found[name].data_ptr() != tensor.data_ptr(), name


def test_averages_are_frozen_whatever_the_mode():
    made = model()
    for mode in (True, False, True):
        assert made.train(mode).net.training == mode
        for _, average in made.averages():
            assert not any(module.training for module in average.modules())
            assert not any(parameter.requires_grad for parameter in average.parameters())
    assert [sigma_rel for sigma_rel, _ in made.averages()] == [0.05, 0.1]
    assert {id(parameter) for parameter in made.parameters_to_train()} == {id(p) for p in made.net.parameters()}


def test_loss_is_a_mean_over_images_of_sums_over_elements():
    """Of a fresh network, which gives c_skip x: lambda |D - y|^2 + 64 u, and u is the logvar of each image."""
    made, given = model(), batch(6)
    outputs = made(given)
    losses = made.loss(outputs, given)
    s, y = given["sigma"].double()[:, None, None, None], given["image"].double()
    denoised = 0.25 / (s**2 + 0.25) * (y + s * given["noise"].double())
    error = ((s**2 + 0.25) / (0.5 * s) ** 2 * (denoised - y) ** 2).sum(dim=(1, 2, 3))
    u = made.net(given["image"], given["sigma"], return_logvar=True)[1].double()
    assert losses["total"].item() == pytest.approx((error / u.exp() + 64 * u).mean().item(), rel=1e-5)
    assert losses["denoising"].item() == pytest.approx(error.mean().item() / 64, rel=1e-5)
    assert not losses["denoising"].requires_grad
    losses["total"].backward()
    assert all(parameter.grad is not None for parameter in made.parameters_to_train())
    doubled: Any = {name: torch.cat([tensor, tensor]) for name, tensor in given.items()}  # pyright: ignore
    assert made.loss(made(doubled), doubled)["total"].item() == pytest.approx(losses["total"].item(), rel=1e-5)


def test_a_step_costs_three_forward_passes_of_two_operations():
    made = model()
    assert made.flops_per_batch(batch(5)) == 5 * 3 * 2 * macs_per_image(made.net) > 0


def test_the_network_is_counted_before_it_is_sharded():
    made = model()
    expected = made.flops_per_batch(batch(1))
    made.net.unet.out_conv.weight = torch.nn.Parameter(torch.zeros(0))  # as a rank without rows holds it
    assert made.flops_per_batch(batch(1)) == expected


def test_state_of_one_is_not_that_of_another():
    made = model()
    before = flat(made.net).clone()
    with torch.no_grad():
        for parameter in made.net.parameters():
            parameter += 1
    for _, average in made.averages():
        assert torch.equal(flat(average), before)
