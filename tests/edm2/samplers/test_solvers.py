"""Every sampler on data whose denoiser is known: order, mean and covariance, evaluations, and what its settings do."""

import inspect
import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from helpers.gaussian_mixture import denoise, moments, noise
from recipe.edm2.samplers.dpm_solver import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m_sde
from recipe.edm2.samplers.euler import euler, euler_ancestral
from recipe.edm2.samplers.exponential import moments as exponential_moments
from recipe.edm2.samplers.exponential import weights
from recipe.edm2.samplers.generate import SAMPLERS
from recipe.edm2.samplers.heun import heun
from recipe.edm2.samplers.names import OPTIONS, takers
from recipe.edm2.samplers.restart import restart, restart_levels
from recipe.edm2.samplers.schedule import sigma_steps
from recipe.edm2.samplers.unipc import unipc

LOW, HIGH = 0.02, 20.0
DETERMINISTIC: dict[str, tuple[Callable[..., Tensor], float, int]] = {
    "heun": (heun, 2, 33),
    "euler": (euler, 1, 33),
    "ancestral without noise": (partial(euler_ancestral, eta=0), 1, 33),
    "dpmpp_2m": (dpmpp_2m, 2, 65),
    "dpmpp_2m_sde of solver_type heun": (partial(dpmpp_2m_sde, eta=0, solver_type="heun"), 2, 129),
    "dpmpp_3m_sde": (partial(dpmpp_3m_sde, eta=0), 3, 129),
    "unipc 1": (partial(unipc, order=1), 2, 65),
    "unipc 2": (unipc, 3, 65),
    "unipc 3": (partial(unipc, order=3), 4, 129),
}
"""Samplers with the order of their theory, and steps from which they have it.

UniPC's corrector has one order more than its predictor. The first steps of the multistep methods have fewer images to
go by, so are of a lower order; they lie where the denoised image hardly depends on sigma, and do not count.
"""
NOISY: dict[str, Callable[..., Tensor]] = {
    "heun": partial(heun, S_churn=20),
    "euler_ancestral": euler_ancestral,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_2m_sde of solver_type heun": partial(dpmpp_2m_sde, solver_type="heun", eta=0.5),
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "restart": partial(restart, restart=[[4, 2, 0.06, 0.3], [5, 2, 0.5, 2.0]]),
}

STEPS = dict.fromkeys(NOISY, 40) | {"euler_ancestral": 200, "heun": 60}


def exact_flow(first: Tensor) -> Tensor:
    """Where the probability flow leads from `first` at HIGH: its denoised image at LOW, by a general ODE solver."""

    def slope(log_sigma: float, flat: object) -> Tensor:
        x, sigma = torch.as_tensor(flat).reshape(first.shape), torch.tensor(math.exp(log_sigma), dtype=torch.float64)
        return (x - denoise(x, sigma)).flatten()

    limits = (math.log(HIGH), math.log(LOW))
    found = solve_ivp(slope, limits, first.flatten().numpy(), method="DOP853", rtol=1e-12, atol=1e-13)
    return denoise(torch.from_numpy(found.y[:, -1].copy()).reshape(first.shape), torch.tensor(LOW))


@pytest.fixture(scope="module")
def flow() -> tuple[Tensor, Tensor]:
    """Noise, and the images that it leads to."""
    first = noise(24)
    return first, exact_flow(first * HIGH)


@pytest.mark.parametrize(("sampler", "order", "steps"), DETERMINISTIC.values(), ids=DETERMINISTIC)
def test_order(sampler: Callable[..., Tensor], order: float, steps: int, flow: tuple[Tensor, Tensor]):
    first, exact = flow
    coarse, fine = (
        float((sampler(denoise, first, sigma_steps(count, LOW, HIGH)) - exact).square().mean().sqrt())
        for count in (steps, 2 * steps - 1)
    )
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


def random_noise(seed: int) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


@pytest.mark.parametrize("name", NOISY)
def test_mean_and_covariance(name: str):
    """Within 4 standard errors of 10,000 samples, and 1% for the method."""
    first = noise(10_000, seed=1)
    samples = NOISY[name](denoise, first, sigma_steps(STEPS[name]), randn_like=random_noise(2)).flatten(1)
    mean, covariance = moments()
    spread = covariance.diagonal().sqrt()
    assert ((samples.mean(0) - mean).abs() < (4 / 100 + 0.01) * spread).all()
    assert ((samples.T.cov() - covariance).abs() < (4 * math.sqrt(2) / 100 + 0.01) * spread.outer(spread)).all()
    still = heun(denoise, first, sigma_steps(20)).flatten(1)
    assert torch.corrcoef(torch.stack([samples[:, 0], still[:, 0]]))[0, 1] < 0.95  # its noise is not the first one's


@pytest.mark.parametrize(
    ("name", "order", "most"),
    [
        ("heun", 2, 0.003),
        ("euler_ancestral", 1, 0.04),
        ("dpmpp_2m_sde", 2, 0.002),
        ("dpmpp_2m_sde of solver_type heun", 2, 0.002),
        ("dpmpp_3m_sde", 2, 0.0005),  # not yet its own order
        ("restart", 2, 0.002),
    ],
)
def test_variance_goes_to_the_exact_one(name: str, order: int, most: float):
    """On Gaussian data the denoiser is linear: the responses to each noise alone make up the samples' variance."""
    errors = [abs(responses(name, steps).norm().item() / GAUSSIAN - 1) for steps in (160, 320)]
    assert errors[0] < most
    assert math.log2(errors[0] / errors[1]) > order - 0.15


GAUSSIAN = 0.5


def responses(name: str, steps: int) -> Tensor:
    """What becomes of the first noise alone, and of each that is added."""
    calls = itertools.count(1)
    noises = torch.eye(2 * steps, dtype=torch.float64)[..., None, None]

    def linear(x: Tensor, sigma: Tensor) -> Tensor:
        return x * GAUSSIAN**2 / (GAUSSIAN**2 + sigma**2)

    options = {"restart": [[steps // 5, 2, 0.06, 0.3], [steps // 4, 2, 0.5, 2.0]]} if name == "restart" else {}
    added = lambda x: noises[next(calls)][:, None]  # noqa: E731
    return NOISY[name](linear, noises[0][:, None], sigma_steps(steps), randn_like=added, **options)


@pytest.mark.parametrize("name", NOISY)
def test_s_noise_scales_the_noise(name: str):
    first = noise(200, seed=1)
    calls = 0

    def ones(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.ones_like(x)

    scaled = NOISY[name](denoise, first, sigma_steps(8), S_noise=0.5, randn_like=lambda x: torch.full_like(x, 2.0))
    torch.testing.assert_close(
        scaled, NOISY[name](denoise, first, sigma_steps(8), randn_like=ones), rtol=1e-12, atol=1e-12
    )
    # Heun churns at all levels; no other sampler adds noise to the last step.
    assert calls == {"heun": 8, "restart": 4}.get(name, 7)


@pytest.mark.parametrize(
    ("name", "num_steps"),
    [(name, steps) for name in SAMPLERS for steps in (1, 2, 3, 9) if (name, steps) != ("restart", 1)],
)
def test_evaluations_and_levels(name: str, num_steps: int):
    """The first level is sigma_max, none is 0, and each is a scalar in the state's precision."""
    seen: list[Tensor] = []

    def noted(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(sigma)
        assert x.dtype == torch.float32
        return denoise(x, sigma).double()  # as a network of another precision would

    options = {"restart": [[3, 2, 0.05, 0.4]]} if name == "restart" else {}
    levels = sigma_steps(num_steps, 0.05, 5.0)
    out = SAMPLERS[name](noted, noise(3).float(), levels, **options)  # pyright: ignore[reportArgumentType]
    assert out.dtype == torch.float32 and out.isfinite().all()
    expected = {"heun": 2 * num_steps - 1, "restart": 2 * num_steps - 1 + 2 * 2 * 2}
    assert len(seen) == expected.get(name, num_steps)
    assert all(sigma.ndim == 0 and sigma.dtype == torch.float32 and sigma > 0 for sigma in seen)
    assert seen[0] == 5
    if name != "restart":
        torch.testing.assert_close(torch.stack(seen).unique(), levels[:-1].float().flip(0))


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_settings_of_names_are_the_samplers(name: str):
    parameters = [*inspect.signature(SAMPLERS[name]).parameters][3:]  # pyright: ignore[reportArgumentType]
    own = OPTIONS[name]  # pyright: ignore[reportArgumentType]
    further = ["randn_like"] * ("S_noise" in own) + ["rho"] * (name == "restart")
    assert sorted(parameters) == sorted([*own, *further])
    assert SAMPLERS.keys() == OPTIONS.keys() and takers("order") == ["unipc"]


def test_eta_is_a_share_of_the_noise():
    """More of it takes the samples further from the flow's."""
    first = noise(500)
    for sampler in (euler_ancestral, dpmpp_2m_sde, dpmpp_3m_sde):
        still = sampler(denoise, first, sigma_steps(40), eta=0)
        away = [
            float((sampler(denoise, first, sigma_steps(40), eta=eta, randn_like=random_noise(3)) - still).std())
            for eta in (0, 0.1, 0.5, 1)
        ]
        assert away[0] == 0 and all(less < 0.95 * more for less, more in itertools.pairwise(away)), sampler


@pytest.mark.parametrize("H", [1e-4, 0.3, 0.999, 1.001, 4.0, 50.0])
def test_moments_are_the_integrals(H: float):
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    density = H * (-H * (1 - u)).exp()
    for k, moment in enumerate(exponential_moments(H, 4)):
        assert moment == pytest.approx(float((density * u**k).mean()), rel=2e-7)


def test_weights_integrate_a_polynomial_exactly():
    points = [0.0, 1.0, -0.7, -1.9]
    found = weights(0.8, points)
    for k, moment in enumerate(exponential_moments(0.8, 4)):
        assert sum(weight * point**k for weight, point in zip(found, points, strict=True)) == pytest.approx(moment)


def test_restarts_at_the_nearest_level():
    levels = sigma_steps(8, 0.05, 20.0)
    low = levels[5].item()
    (index,) = found = restart_levels(levels, [[4, 3, 1.04 * low, 3 * low]])
    assert index == 5 and len(found[5]) == 3
    for down in found[5]:
        torch.testing.assert_close(down, sigma_steps(4, low, 3 * low)[:-1])
    begun = [restart_levels(levels, [[3, 1, low, 9.0], [4, 2, low, 8.0]])[5]][0]
    assert [len(down) for down in begun] == [3, 4, 4]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "names no interval"),
        ([[3, 2, 0.1]], r"\[3, 2, 0.1\]: must be \[N, K, t_min, t_max\]"),
        ([[1, 2, 0.1, 0.3]], "N >= 2 noise levels"),
        ([[2.5, 2, 0.1, 0.3]], "N >= 2 noise levels"),
        ([[3, 0, 0.1, 0.3]], "K >= 1 times"),
        ([[3, 2, 0.3, 0.3]], "0 < t_min < t_max"),
        ([[3, 2, 0.0, 0.3]], "0 < t_min < t_max"),
        ([[3, 2, 18.0, 30.0]], r"restart \[3, 2, 18, 30\]: t_min's nearest level is the first"),
        ([[3, 2, 0.15, 0.17]], "nearest level is 0.1723, not below t_max 0.17"),
    ],
)
def test_bad_restarts(given: list[list[float]], said: str):
    with pytest.raises(ValueError, match=said):
        restart(denoise, noise(2), sigma_steps(8, 0.05, 20.0), restart=given)


@pytest.mark.parametrize("order", [0, 4])
def test_bad_order(order: int):
    with pytest.raises(ValueError, match=f"order {order} is not 1, 2 or 3"):
        unipc(denoise, noise(2), sigma_steps(8), order=order)
