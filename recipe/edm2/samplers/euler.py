"""Euler's method, and ancestral sampling: Euler's method with noise at each step."""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from recipe.edm2.samplers.schedule import Denoise


def euler(
    denoise: Denoise,
    noise: Tensor,
    sigmas: Tensor,
) -> Tensor:
    """Draw images by Euler's 1st-order method (Karras et al. 2022, eq. 3).

    Calls `denoise` once for each noise level above 0. It is DDIM (Song et al. 2020) in this parametrisation, and
    DPM-Solver++ of order 1. Arguments as of `heun`.
    """
    return euler_ancestral(denoise, noise, sigmas, eta=0)


@torch.no_grad()
def euler_ancestral(
    denoise: Denoise,
    noise: Tensor,
    sigmas: Tensor,
    eta: float = 1.0,
    S_noise: float = 1.0,
    randn_like: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Tensor:
    """Draw images by ancestral sampling; calls `denoise` once for each noise level above 0.

    Each step goes down to a lower level than the next one, by Euler's method, and adds the noise that lacks. At eta = 1
    this is the posterior p(x_next | x, denoised) (Song et al. 2021, Appendix F); eta scales its standard deviation
    (Song et al. 2020, eq. 16).

    Args:
        denoise, noise, sigmas: as of `heun`.
        eta: share of the posterior's noise; 0 = `euler`.
        S_noise: scale of the added noise.
        randn_like: makes unit noise like its argument; called once for each step but the last, unless eta is 0.
    """
    levels, sigmas = sigmas.tolist(), sigmas.to(noise)
    x = noise * sigmas[0]
    for index, (sigma, sigma_next) in enumerate(itertools.pairwise(levels)):
        sigma_up = min(sigma_next, eta * sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2))
        sigma_down = math.sqrt(sigma_next**2 - sigma_up**2)
        denoised = denoise(x, sigmas[index]).to(x.dtype)
        x = sigma_down / sigma * x + (1 - sigma_down / sigma) * denoised
        if sigma_up > 0:
            x = x + sigma_up * S_noise * randn_like(x)
    return x
