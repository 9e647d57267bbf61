"""Images in the latent space of an autoencoder: one drawn from its distribution, and scaled for the network.

The autoencoder gives a mean and a standard deviation for each latent pixel; the network sees latents whose channels are
scaled to mean 0 and standard deviation 0.5 (Section 2 and Appendix B.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recipe.edm2 import rng

SIGMA_DATA = 0.5  # of whitened latents


@dataclass(frozen=True)
class Whitening:
    """Mean and standard deviation of each channel of the latents, over a data set."""

    mean: Sequence[float]
    std: Sequence[float]


STABLE_DIFFUSION = Whitening((5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28))
"""Of ImageNet-512 in the autoencoder sd-vae-ft-mse: the official code's constants."""


def draw(mean: Tensor, std: Tensor, seed: int, batch: int, ids: Tensor) -> Tensor:
    """A fresh sample of each latent's distribution, float32 [N, C, H, W], a function of (seed, batch, id) alone.

    Args:
        mean, std: of each latent pixel [N, C, H, W], any float dtype.
        ids: int64 [N].
    """
    return mean.float() + std.float() * rng.normal(seed, rng.LATENT, batch, ids, mean.shape[1:])


def whiten(latents: Tensor, whitening: Whitening) -> Tensor:
    """Latents [N, C, H, W] as the network sees them: (x - mean) * (0.5 / std), channel by channel."""
    mean, scale = _per_channel(latents, whitening)
    return (latents - mean) * scale


def unwhiten(latents: Tensor, whitening: Whitening) -> Tensor:
    """The inverse of `whiten`: what the autoencoder's decoder takes."""
    mean, scale = _per_channel(latents, whitening)
    return latents / scale + mean


def _per_channel(latents: Tensor, whitening: Whitening) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values, device=latents.device) for values in (whitening.mean, whitening.std))
    assert len(mean) == latents.shape[1], (len(mean), latents.shape)
    return mean[:, None, None], (SIGMA_DATA / std)[:, None, None]
