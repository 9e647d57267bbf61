"""Noise levels of a sampler, and what a denoiser is to it (Karras et al. 2022, eq. 5)."""

from collections.abc import Callable

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]  # (noisy images [N, C, H, W], sigma []) -> denoised images


def sigma_steps(num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Noise levels of the sampler [num_steps + 1], falling from sigma_max to sigma_min and then 0, in float64.

    Raises:
        ValueError: fewer than 1 step, or not 0 < sigma_min < sigma_max, or rho <= 0.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps {num_steps} is below 1")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min {sigma_min} and sigma_max {sigma_max} do not satisfy 0 < sigma_min < sigma_max")
    if not rho > 0:
        raise ValueError(f"rho {rho} is not above 0")
    fraction = torch.arange(num_steps, dtype=torch.float64) / max(num_steps - 1, 1)
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigmas = (top + fraction * (bottom - top)) ** rho
    return torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])
