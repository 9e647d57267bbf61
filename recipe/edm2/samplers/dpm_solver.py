"""DPM-Solver++: multistep methods of the probability flow and of its SDE (Lu et al. 2022, arXiv 2211.01095)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from recipe.edm2.samplers.exponential import Denoised, Rule, log_snrs, step
from recipe.edm2.samplers.names import SolverType
from recipe.edm2.samplers.schedule import Denoise


def dpmpp_2m(
    denoise: Denoise,
    noise: Tensor,
    sigmas: Tensor,
) -> Tensor:
    """Draw images by DPM-Solver++(2M), of order 2 (Algorithm 2); calls `denoise` once for each noise level above 0.

    Its first step, and the last one to sigma 0, are of order 1. Arguments as of `heun`.
    """
    return dpmpp_2m_sde(denoise, noise, sigmas, eta=0)


def dpmpp_2m_sde(
    denoise: Denoise,
    noise: Tensor,
    sigmas: Tensor,
    eta: float = 1.0,
    S_noise: float = 1.0,
    solver_type: SolverType = "midpoint",
    randn_like: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Tensor:
    """Draw images by SDE-DPM-Solver++(2M); calls `denoise` once for each noise level above 0.

    Args:
        denoise, noise, sigmas: as of `heun`.
        eta: noise of the SDE; 1 = as much as in training's reverse, 0 = `dpmpp_2m`.
        S_noise: scale of the added noise.
        solver_type: how the slope of the denoised image is integrated: midpoint, as in the paper, or heun, exactly.
        randn_like: makes unit noise like its argument; called once for each step but the last, unless eta is 0.
    """
    rule = "midpoint" if solver_type == "midpoint" else "exact"
    return _multistep(denoise, noise, sigmas, 2, rule, eta, S_noise, randn_like)


def dpmpp_3m_sde(
    denoise: Denoise,
    noise: Tensor,
    sigmas: Tensor,
    eta: float = 1.0,
    S_noise: float = 1.0,
    randn_like: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Tensor:
    """Draw images by the multistep method of three denoised images; calls `denoise` once for each noise level above 0.

    Of order 3 at eta = 0, but for its first two steps, which have fewer images to go by. The parabola through the three
    images is integrated exactly. k-diffusion and diffusers weigh its second difference half as much, by which the order
    is 2.

    Args: as of `dpmpp_2m_sde`.
    """
    return _multistep(denoise, noise, sigmas, 3, "exact", eta, S_noise, randn_like)


@torch.no_grad()
def _multistep(
    denoise: Denoise,
    noise: Tensor,
    levels: Tensor,
    order: int,
    rule: Rule,
    eta: float,
    S_noise: float,
    randn_like: Callable[[Tensor], Tensor],
) -> Tensor:
    sigmas, log_snr = levels.to(noise), log_snrs(levels)
    x = noise * sigmas[0]
    known: list[Denoised] = []
    for index in range(len(levels) - 1):
        known.insert(0, Denoised(log_snr[index], denoise(x, sigmas[index]).to(x.dtype)))
        del known[order:]
        h = log_snr[index + 1] - log_snr[index]
        x = step(x, h, known, eta, rule)
        if eta > 0 and not math.isinf(h):
            sigma_up = levels[index + 1].item() * math.sqrt(-math.expm1(-2 * eta * h))
            x = x + sigma_up * S_noise * randn_like(x)
    return x
