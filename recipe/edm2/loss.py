"""The training loss: denoising score matching weighted by a learned uncertainty (eq. 14-15, 21)."""

from typing import Protocol

import torch
from torch import Tensor


class Denoiser(Protocol):
    """A network D(x; sigma, labels) that also gives its log variance u(sigma) [N], such as `Precond`."""

    sigma_data: float

    def __call__(
        self,
        x: Tensor,
        sigma: Tensor,
        labels: Tensor | None = None,
        return_logvar: bool = False,
        augment: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]: ...


def example_losses(
    net: Denoiser, images: Tensor, sigma: Tensor, noise: Tensor, labels: Tensor, augment: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Loss (eq. 21) and `denoising_error` of each example, both float32 [N]; training minimises the mean of the first.

    Args:
        net: the denoiser.
        images: float32 [N, C, H, W] in the network's range.
        sigma: noise levels [N], > 0.
        noise: of unit variance, [N, C, H, W].
        labels: int64 class ids [N]; -1 = unconditional.
        augment: conditions of the augmentation [N, 9]; None = untouched images.
    """
    noisy = images + sigma[:, None, None, None] * noise
    denoised, logvar = net(noisy, sigma, labels, return_logvar=True, augment=augment)
    error = denoising_error(denoised, images, sigma, net.sigma_data)
    return uncertainty_loss(error, logvar, images[0].numel()), error


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
