"""Images from a network: the sampler with noise that depends on each image's seed alone."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from recipe.edm2 import rng
from recipe.edm2.networks.precond import Precond
from recipe.edm2.samplers.dpm_solver import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m_sde
from recipe.edm2.samplers.euler import euler, euler_ancestral
from recipe.edm2.samplers.guidance import EVERYWHERE, Interval, guided, guided_in_one_batch
from recipe.edm2.samplers.heun import heun
from recipe.edm2.samplers.names import OPTIONS, RESTART, Name, Restart, SolverType
from recipe.edm2.samplers.restart import restart, restart_levels
from recipe.edm2.samplers.schedule import Denoise, sigma_steps
from recipe.edm2.samplers.unipc import unipc

SAMPLERS: Mapping[Name, Callable[..., Tensor]] = {
    "heun": heun,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "unipc": unipc,
    "restart": restart,
}


@dataclass(frozen=True)
class SamplerSettings:
    """Arguments of the samplers that a user sets, and guidance.

    Attributes:
        num_steps, sigma_min, sigma_max, rho: the schedule; see `sigma_steps`.
        S_churn, S_min, S_max, S_noise: see `heun`. S_noise scales the noise of the other samplers, too.
        guidance: its strength; 1 = none.
        interval: noise levels (lo, hi] with guidance; an endpoint within 2% of a noise level means that level.
        in_one_batch: evaluate a network and itself without labels in one batch, of twice the images. Changes memory,
            speed and rounding, not the result.
        sampler: its name; `names.OPTIONS` says which of the other settings it takes.
        eta, solver_type, order, restart: see the sampler.
        state_dtype: precision of the noisy image between evaluations.
    """

    num_steps: int = 32
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    S_churn: float = 0.0
    S_min: float = 0.0
    S_max: float = math.inf
    S_noise: float = 1.0
    guidance: float = 1.0
    interval: Interval = EVERYWHERE
    in_one_batch: bool = True
    sampler: Name = "heun"
    eta: float = 1.0
    solver_type: SolverType = "midpoint"
    order: int = 2
    restart: Sequence[Restart] = RESTART
    state_dtype: Literal["float32", "float64"] = "float32"

    @functools.cached_property
    def levels(self) -> Tensor:
        """Noise levels of the sampler [num_steps + 1], the last one 0, in float64; made once. Raises ValueError."""
        return sigma_steps(self.num_steps, self.sigma_min, self.sigma_max, self.rho)

    def sigmas(self) -> Tensor:
        """Noise levels above 0 [num_steps], in the state's precision. Raises ValueError."""
        return self.levels[:-1].to(self.dtype())

    def dtype(self) -> torch.dtype:
        return torch.float64 if self.state_dtype == "float64" else torch.float32

    def check(self) -> None:
        """Raises ValueError for restarts or an interval of guidance that do not go with the noise levels."""
        self.check_restarts()
        if self.guidance != 1:
            self.interval.check(self.sigmas())

    def check_restarts(self) -> None:
        """Raises ValueError for restarts that do not go with the noise levels."""
        if self.sampler == "restart":
            restart_levels(self.levels, self.restart, self.rho)


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

    Raises:
        ValueError: see `SamplerSettings.check`.
    """
    settings.check()
    shape = (net.img_channels, net.img_resolution, net.img_resolution)
    zeros = torch.zeros_like(seeds)
    step = 0

    def draw(use: int) -> Tensor:
        return rng.normal(seeds, use, step, zeros, shape)

    def added_noise(x: Tensor) -> Tensor:
        nonlocal step
        step += 1
        return draw(rng.SAMPLE_CHURN).to(x.dtype)

    takes = OPTIONS[settings.sampler]
    options = {name: getattr(settings, name) for name in takes}
    if settings.sampler == "restart":
        options["rho"] = settings.rho
    if "S_noise" in takes:
        options["randn_like"] = added_noise
    noise = draw(rng.SAMPLE_NOISE).to(settings.dtype())
    denoise = denoiser(net, labels, settings, guide)
    return SAMPLERS[settings.sampler](denoise, noise, settings.levels, **options).float()


def denoiser(net: Precond, labels: Tensor, settings: SamplerSettings, guide: Precond | None = None) -> Denoise:
    """What the sampler calls: the network with its labels, guided as the settings say; arguments as of `generate`."""
    interval = settings.interval.on_levels(settings.sigmas())

    def with_labels(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        return net(x, sigma, labels)  # pyright: ignore[reportReturnType]

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return with_labels(x, sigma, labels)

    def denoise_guide(x: Tensor, sigma: Tensor) -> Tensor:
        if guide is None:
            return with_labels(x, sigma, None)
        return guide(x, sigma, labels if guide.label_dim > 0 else None)  # pyright: ignore[reportReturnType]

    if guide is None and settings.in_one_batch:
        return guided_in_one_batch(with_labels, labels, settings.guidance, interval)
    return guided(denoise, denoise_guide, settings.guidance, interval)


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
