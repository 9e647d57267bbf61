"""The training loss: denoising score matching weighted by a learned uncertainty (eq. 14-15, 21)."""

import torch
from torch import Tensor


def sample_sigma(rnd_normal: Tensor, P_mean: float = -0.4, P_std: float = 1.0) -> Tensor:
    """Noise levels sigma with ln sigma ~ N(P_mean, P_std^2), from unit normals of the same shape."""
    return (rnd_normal * P_std + P_mean).exp()


def loss_weight(sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """lambda(sigma) of eq. 15, which makes the loss of an untrained network 1 at every noise level."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def denoising_error(denoised: Tensor, images: Tensor, sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """lambda(sigma) |D - y|^2 per image [N], summed over C, H, W; `sigma` has shape [N]."""
    return loss_weight(sigma, sigma_data) * (denoised - images).square().sum(dim=(1, 2, 3))


def uncertainty_loss(error: Tensor, logvar: Tensor, num_elements: int) -> Tensor:
    """Loss per image [N] (eq. 21): error / e^u + u, with u counted once per element of the image.

    Args:
        error: `denoising_error` of each image [N].
        logvar: u(sigma) of each image [N].
        num_elements: C*H*W; the loss is a sum over the elements, not their mean.
    """
    return error / torch.exp(logvar) + logvar * num_elements
