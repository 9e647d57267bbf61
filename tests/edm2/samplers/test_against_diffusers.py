"""The samplers against the schedulers of diffusers, given the same noise levels, denoiser and noise.

diffusers' DPM-Solver++ and UniPC hold images as they are in the variance-preserving process, alpha * x with alpha =
1 / sqrt(1 + sigma^2); its Euler schedulers as here. Numbers of k-diffusion are in docs/sampling.md.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.gaussian_mixture import denoise, noise
from recipe.edm2.samplers.dpm_solver import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m_sde
from recipe.edm2.samplers.euler import euler, euler_ancestral
from recipe.edm2.samplers.exponential import moments
from recipe.edm2.samplers.schedule import sigma_steps
from recipe.edm2.samplers.unipc import unipc

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
schedulers = pytest.importorskip("diffusers.schedulers")

LEVELS = sigma_steps(12, 0.02, 20.0, 7.0)
FIRST, ADDED = noise(16), noise(16 * 12, seed=1).reshape(12, 16, 2, 1, 1)


def by_diffusers(scheduler: Any, preserving: bool, steps: int = 12, **arguments: list[Tensor]) -> Tensor:
    """The images after some steps of a scheduler; argument i of a list goes to step i."""
    scheduler.set_timesteps(12)
    scheduler.sigmas = LEVELS
    scale = 1 / (1 + LEVELS**2).sqrt() if preserving else torch.ones_like(LEVELS)
    x = FIRST * LEVELS[0] * scale[0]
    for index in range(steps):
        denoised = denoise(x / scale[index], LEVELS[index])
        own = {name: values[index] for name, values in arguments.items()}
        x = scheduler.step(denoised, scheduler.timesteps[index], x, **own).prev_sample.double()
    return x / scale[steps]


def given_noise() -> Any:
    later = iter(ADDED)
    return lambda x: next(later)


def multistep(order: int, algorithm: str = "dpmsolver++", **options: object) -> Any:
    return schedulers.DPMSolverMultistepScheduler(
        prediction_type="sample", solver_order=order, algorithm_type=algorithm, **options
    )


def test_euler():
    """diffusers computes this step in float32."""
    theirs = by_diffusers(schedulers.EulerDiscreteScheduler(prediction_type="sample"), preserving=False)
    torch.testing.assert_close(euler(denoise, FIRST, LEVELS), theirs, rtol=0, atol=1e-6)


def test_euler_ancestral(monkeypatch: pytest.MonkeyPatch):
    """diffusers computes this step in float32. Its last step asks for noise, and multiplies it by 0."""
    later = iter(ADDED)
    module = "diffusers.schedulers.scheduling_euler_ancestral_discrete"
    monkeypatch.setattr(f"{module}.randn_tensor", lambda *shape, **options: next(later))
    scheduler = schedulers.EulerAncestralDiscreteScheduler()
    scheduler.set_timesteps(12)
    scheduler.sigmas = LEVELS
    x = FIRST * LEVELS[0]
    for sigma, time in zip(LEVELS[:-1], scheduler.timesteps, strict=True):
        x = scheduler.step((x - denoise(x, sigma)) / sigma, time, x).prev_sample.double()
    ours = euler_ancestral(denoise, FIRST, LEVELS, randn_like=given_noise())
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-5)


def test_dpmpp_2m():
    theirs = by_diffusers(multistep(2), preserving=True)
    torch.testing.assert_close(dpmpp_2m(denoise, FIRST, LEVELS), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
def test_dpmpp_2m_sde(solver_type: Any):
    theirs = by_diffusers(multistep(2, "sde-dpmsolver++", solver_type=solver_type), True, variance_noise=list(ADDED))
    ours = dpmpp_2m_sde(denoise, FIRST, LEVELS, solver_type=solver_type, randn_like=given_noise())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_dpmpp_3m_weighs_the_second_difference_twice_as_much():
    """Up to two images they agree; then ours adds the other half of the parabola's curvature, which order 3 needs."""
    theirs = [by_diffusers(multistep(3, solver_type="heun"), True, steps=steps) for steps in (2, 3)]
    seen: list[Tensor] = []
    images: list[Tensor] = []

    def noted(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(x)
        images.append(denoise(x, sigma))
        return images[-1]

    dpmpp_3m_sde(noted, FIRST, LEVELS, eta=0)
    torch.testing.assert_close(seen[2], theirs[0], rtol=1e-6, atol=1e-6)
    h = -LEVELS[:4].log().diff()
    slopes = [(images[2] - images[1]) / h[1], (images[1] - images[0]) / h[0]]
    second = (slopes[0] - slopes[1]) / (h[1] + h[0]) * h[2] ** 2
    half = moments(float(h[2]), 3)[2] / 2 * second
    assert half.abs().max() > 1e-4
    torch.testing.assert_close(seen[3] - half, theirs[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("order", "steps"), [(1, 12), (2, 12), (3, 10)])
def test_unipc(order: int, steps: int):
    """At order 3, diffusers lowers the order of the last steps but one: compared is what the tenth step leads to."""
    scheduler = schedulers.UniPCMultistepScheduler(
        prediction_type="sample", solver_order=order, solver_type="bh2", predict_x0=True, final_sigmas_type="zero"
    )
    theirs = by_diffusers(scheduler, preserving=True, steps=steps)
    seen: list[Tensor] = []

    def noted(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(x)
        return denoise(x, sigma)

    seen.append(unipc(noted, FIRST, LEVELS, order=order))
    torch.testing.assert_close(seen[steps], theirs, rtol=0, atol=1e-6)
