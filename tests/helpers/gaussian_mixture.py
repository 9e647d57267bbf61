"""Data whose denoiser is known: a mixture of three Gaussians in the plane, as images of 1 x 1 pixels of 2 channels."""

import torch
from torch import Tensor

WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
MEANS = torch.tensor([[-0.6, 0.1], [0.5, 0.4], [0.1, -0.7]], dtype=torch.float64)
STDS = torch.tensor([0.2, 0.3, 0.25], dtype=torch.float64)


def denoise(x: Tensor, sigma: Tensor) -> Tensor:
    """E[y | x] for x [N, 2, 1, 1] = y + sigma * noise."""
    variances = STDS**2 + sigma.double() ** 2
    away = x.double().flatten(1)[:, None] - MEANS
    share = (WEIGHTS.log() - variances.log() - away.square().sum(-1) / (2 * variances)).softmax(-1)
    means = MEANS + (STDS**2 / variances)[:, None] * away
    return (share[..., None] * means).sum(1)[..., None, None].to(x.dtype)


def moments() -> tuple[Tensor, Tensor]:
    """Mean [2] and covariance [2, 2] of the data."""
    mean = WEIGHTS @ MEANS
    away = MEANS - mean
    return mean, (away.T * WEIGHTS) @ away + (WEIGHTS @ STDS**2) * torch.eye(2, dtype=torch.float64)


def noise(count: int, seed: int = 0) -> Tensor:
    """Unit noise [count, 2, 1, 1] in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 1, 1, generator=generator, dtype=torch.float64)
