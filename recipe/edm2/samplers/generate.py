"""Images from a network: the sampler with noise that depends on each image's seed alone."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recipe.edm2 import rng
from recipe.edm2.networks.precond import Precond
from recipe.edm2.samplers.guidance import guided
from recipe.edm2.samplers.heun import heun


@dataclass(frozen=True)
class SamplerSettings:
    """Arguments of `heun` that a user sets, and the strength of guidance (1 = none)."""

    num_steps: int = 32
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    S_churn: float = 0.0
    S_min: float = 0.0
    S_max: float = math.inf
    S_noise: float = 1.0
    guidance: float = 1.0


def generate(
    net: Precond, seeds: Tensor, labels: Tensor, settings: SamplerSettings, guide: Precond | None = None
) -> Tensor:
    """Draw one image per seed.

    Args:
        net: the denoiser, in eval mode.
        seeds: int64 [N], on the device to draw on. Image i depends on seeds[i] and labels[i] alone, up to rounding.
        labels: int64 class ids [N]; -1 = unconditional.
        settings: sampler settings.
        guide: the weaker network of autoguidance, or an unconditional one; None = `net` without labels, which is
            classifier-free guidance and wants a network trained with label dropout. Only used if guidance is not 1.

    Returns:
        float32 images [N, C, H, W], in the range of the network.
    """
    shape = (net.img_channels, net.img_resolution, net.img_resolution)
    zeros = torch.zeros_like(seeds)
    step = 0

    def draw(use: int) -> Tensor:
        return rng.normal(seeds, use, step, zeros, shape)

    def churn_noise(x: Tensor) -> Tensor:
        nonlocal step
        step += 1
        return draw(rng.SAMPLE_CHURN).to(x.dtype)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return net(x, sigma, labels)  # pyright: ignore[reportReturnType]

    def denoise_guide(x: Tensor, sigma: Tensor) -> Tensor:
        weaker = net(x, sigma, None) if guide is None else guide(x, sigma, labels if guide.label_dim > 0 else None)
        return weaker  # pyright: ignore[reportReturnType]

    arguments = {name: value for name, value in vars(settings).items() if name != "guidance"}
    return heun(
        guided(denoise, denoise_guide, settings.guidance),
        draw(rng.SAMPLE_NOISE),
        randn_like=churn_noise,
        **arguments,
    )


def generate_batches(
    net: Precond,
    seeds: Sequence[int],
    labels: Sequence[int],
    settings: SamplerSettings,
    batch_size: int,
    guide: Precond | None = None,
) -> Iterator[Tensor]:
    """`generate` in batches on the network's device; yields float32 images on the CPU, in order."""
    device = net.unet.out_gain.device
    for start in range(0, len(seeds), batch_size):
        part = slice(start, start + batch_size)
        seed_tensor = torch.tensor(seeds[part], dtype=torch.int64, device=device)
        label_tensor = torch.tensor(labels[part], dtype=torch.int64, device=device)
        yield generate(net, seed_tensor, label_tensor, settings, guide).cpu()
