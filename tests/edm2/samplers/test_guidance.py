"""Guidance against the mix by hand, and the noise levels that it is on at."""

import math

import pytest
import torch
from torch import Tensor

from helpers.small_snapshots import small_network
from recipe.edm2 import rng
from recipe.edm2.networks.precond import Precond
from recipe.edm2.samplers.generate import SamplerSettings, denoiser, generate
from recipe.edm2.samplers.guidance import Interval, guided, guided_in_one_batch, near
from recipe.edm2.samplers.heun import heun
from recipe.edm2.samplers.schedule import sigma_steps

LEVELS = sigma_steps(32)[:-1]
SEEDS, LABELS = torch.arange(3), torch.tensor([2, 5, 8])


@pytest.fixture(scope="module")
def net() -> Precond:
    return small_network(3)


def constant(value: float):
    return lambda x, sigma: torch.full_like(x, value)


@pytest.mark.parametrize(
    ("sigma", "mixed"), [(0.5, False), (0.5000001, True), (1.0, True), (2.0, True), (2.0000002, False), (9.0, False)]
)
def test_lo_is_out_and_hi_is_in(sigma: float, mixed: bool):
    x, level = torch.zeros(2), torch.tensor(sigma, dtype=torch.float64)
    found = guided(constant(3.0), constant(1.0), 2.0, Interval(0.5, 2.0))(x, level)
    assert found.tolist() == [5.0 if mixed else 3.0] * 2


def test_outside_the_interval_the_guide_is_not_asked():
    asked: list[float] = []

    def guide(x: Tensor, sigma: Tensor) -> Tensor:
        asked.append(float(sigma))
        return x

    denoise = guided(constant(0.0), guide, 1.5, Interval(0.28, 2.9).on_levels(LEVELS))
    heun(denoise, torch.ones(1, 1, 1, 1).double(), sigma_steps(32))
    # Each level but the first is evaluated twice, as the end of a step and as the begin of the next.
    assert sorted(set(asked), reverse=True) == LEVELS[15:22].tolist() and len(asked) == 2 * 7


@pytest.mark.parametrize(
    ("lo", "hi", "first", "last"),
    [(0.28, 2.90, 15, 21), (0.60, 5.00, 13, 19), (0.19, 1.61, 17, 22), (0, math.inf, 0, 31), (0, 0.002, 31, 31)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_published_intervals_are_levels(lo: float, hi: float, first: int, last: int, dtype: torch.dtype):
    """Of the guidance-interval paper, whose best one for XXL is 6 of 32 steps; endpoints rounded to two decimals."""
    sigmas = LEVELS.to(dtype)
    interval = Interval(lo, hi)
    assert interval.remark(sigmas) is None
    assert interval.guides(sigmas) == sigmas[first : last + 1].tolist()
    assert interval.on_levels(sigmas).on_levels(sigmas) == interval.on_levels(sigmas)


def test_endpoints_between_levels():
    assert near(3.3, LEVELS) is None and near(0, LEVELS) == 0 and near(math.inf, LEVELS) == math.inf
    assert near(LEVELS[9].item() * 1.0199, LEVELS) == LEVELS[9]
    assert near(LEVELS[9].item() * 0.97, LEVELS) is None
    assert Interval(0.28, 3.3).on_levels(LEVELS) == (LEVELS[22], 3.3)
    said = "(0.28, 3.3]: 3.3 is no noise level; guidance is on at 7 of the 32, 2.902 to 0.4154"
    assert Interval(0.28, 3.3).remark(LEVELS) == said
    both = "(0.3, 3.3]: 0.3 and 3.3 are no noise levels; guidance is on at 7 of the 32, 2.902 to 0.4154"
    assert Interval(0.3, 3.3).remark(LEVELS) == both


@pytest.mark.parametrize("ends", [(0.3, 0.4), (80, 90), (0.0001, 0.001)])
def test_an_interval_without_a_level(ends: tuple[float, float], net: Precond):
    settings = SamplerSettings(guidance=2, interval=Interval(*ends))
    with pytest.raises(ValueError, match=r"\] holds none of the 32 noise levels, 80 to 0.002"):
        generate(net, SEEDS, LABELS, settings)
    SamplerSettings(interval=Interval(*ends)).check()  # without guidance it is not used


@pytest.mark.parametrize("guidance", [0.0, 1.4, 3.0])
@pytest.mark.parametrize("sigma", [0.02, 0.7, 30.0])
def test_one_batch_is_the_mix_by_hand(net: Precond, guidance: float, sigma: float):
    x, level = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(sigma)
    by_hand = guidance * net(x, level, LABELS) + (1 - guidance) * net(x, level, None)  # pyright: ignore
    for in_one_batch in (True, False):
        settings = SamplerSettings(guidance=guidance, in_one_batch=in_one_batch)
        torch.testing.assert_close(denoiser(net, LABELS, settings)(x, level), by_hand, rtol=0, atol=1e-5)


def test_one_batch_is_one_call(net: Precond):
    calls: list[tuple[int, list[int]]] = []

    def denoise(x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        calls.append((len(x), labels.tolist()))
        return x

    mixed = guided_in_one_batch(denoise, LABELS, 2.0, Interval(0.5, 2.0))
    for sigma in (0.5, 1.0):
        assert len(mixed(torch.zeros(3, 1), torch.tensor(sigma))) == 3
    assert calls == [(3, [2, 5, 8]), (6, [2, 5, 8, -1, -1, -1])]
    assert guided_in_one_batch(denoise, LABELS, 1.0)(torch.zeros(3, 1), torch.ones(())).shape == (3, 1)
    assert calls[-1] == (3, [2, 5, 8])


def test_a_second_network_guides_within_the_interval(net: Precond):
    guide, noise = small_network(7), rng.normal(SEEDS, rng.SAMPLE_NOISE, 0, torch.zeros_like(SEEDS), (1, 8, 8))
    lo, hi = 0.1, 3.0

    def by_hand(x: Tensor, sigma: Tensor) -> Tensor:
        main = net(x, sigma, LABELS)
        return 1.8 * main - 0.8 * guide(x, sigma, LABELS) if lo < sigma <= hi else main  # pyright: ignore

    expected = heun(by_hand, noise, sigma_steps(6))
    settings = SamplerSettings(num_steps=6, guidance=1.8, interval=Interval(lo, hi))
    found = generate(net, SEEDS, LABELS, settings, guide)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    everywhere = generate(net, SEEDS, LABELS, SamplerSettings(num_steps=6, guidance=1.8), guide)
    assert (everywhere - found).norm() > 0.01 * found.norm()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_published_interval_in_the_denoiser(net: Precond, dtype: str):
    """2.90 means the level 2.9015, which is in it, and 0.28 the level 0.283, which is not."""
    settings = SamplerSettings(guidance=3, interval=Interval(0.28, 2.9), state_dtype=dtype)  # pyright: ignore
    mixed, x = denoiser(net, LABELS, settings), torch.ones(3, 1, 8, 8)
    for sigma, on in zip(settings.sigmas()[13:24], [False] * 2 + [True] * 7 + [False] * 2, strict=True):
        plain = net(x, sigma, LABELS)
        assert torch.allclose(mixed(x, sigma), plain, rtol=0, atol=1e-6) is not on  # pyright: ignore
