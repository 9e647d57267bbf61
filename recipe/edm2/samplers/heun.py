"""The deterministic and stochastic Heun sampler of EDM (Karras et al. 2022, Algorithm 2)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from recipe.edm2.samplers.schedule import Denoise


@torch.no_grad()
def heun(
    denoise: Denoise,
    noise: Tensor,
    sigmas: Tensor,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
    randn_like: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Tensor:
    """Draw images by Heun's 2nd-order method; calls `denoise` 2 N - 1 times for N noise levels above 0.

    Args:
        denoise: the denoiser; its second argument is a scalar tensor.
        noise: unit-variance noise [N, C, H, W]. The state has its dtype: float64 as in EDM, float32 as in EDM2.
        sigmas: noise levels [N + 1], falling, the last one 0, in float64; see `sigma_steps`.
        S_churn: noise added over the whole trajectory; 0 = deterministic.
        S_min, S_max: churn only at S_min <= sigma <= S_max.
        S_noise: scale of the added noise.
        randn_like: makes unit noise like its argument; called once for each step that churns.
    """
    num_steps, sigmas = len(sigmas) - 1, sigmas.to(noise)
    x = noise * sigmas[0]
    for index in range(num_steps):
        sigma, sigma_next = sigmas[index], sigmas[index + 1]
        if S_churn > 0 and S_min <= sigma <= S_max:
            sigma_hat = sigma * (1 + min(S_churn / num_steps, math.sqrt(2) - 1))
            x = x + (sigma_hat**2 - sigma**2).sqrt() * S_noise * randn_like(x)
            sigma = sigma_hat
        x = heun_step(denoise, x, sigma, sigma_next, last=index == num_steps - 1)
    return x


def heun_step(denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, last: bool = False) -> Tensor:
    """`x` at the level sigma_next; by Euler's method if it is the last one, 0, where there is no slope."""
    slope = (x - denoise(x, sigma).to(x.dtype)) / sigma
    x_next = x + (sigma_next - sigma) * slope
    if not last:
        slope_next = (x_next - denoise(x_next, sigma_next).to(x.dtype)) / sigma_next
        x_next = x + (sigma_next - sigma) * (slope + slope_next) / 2
    return x_next
