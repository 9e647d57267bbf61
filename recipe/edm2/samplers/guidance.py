"""Guidance: extrapolating from a weaker denoiser through a better one, at all noise levels or at some."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from recipe.edm2.samplers.schedule import Denoise

NEAR = 0.02  # relative; the intervals of papers are levels of a schedule, rounded to two decimals


class Interval(NamedTuple):
    """Noise levels lo < sigma <= hi, where guidance is on (Kynkaanniemi et al. 2024)."""

    lo: float = 0.0
    hi: float = math.inf

    def on_levels(self, sigmas: Tensor) -> "Interval":
        """The interval with each endpoint that is within 2% of a noise level put on it, in the levels' precision.

        Args:
            sigmas: noise levels of a schedule, falling.
        """
        return Interval(*(near(end, sigmas) or end for end in self))

    def guides(self, sigmas: Tensor) -> list[float]:
        """The levels at which guidance is on."""
        lo, hi = self.on_levels(sigmas)
        return [sigma for sigma in sigmas.tolist() if lo < sigma <= hi]

    def check(self, sigmas: Tensor) -> None:
        """Raises ValueError if guidance is on at none of the levels."""
        if not self.guides(sigmas):
            ends = f"{sigmas[0].item():g} to {sigmas[-1].item():g}"
            raise ValueError(f"({self.lo:g}, {self.hi:g}] holds none of the {len(sigmas)} noise levels, {ends}")

    def remark(self, sigmas: Tensor) -> str | None:
        """What to say of endpoints that are no noise levels, and where guidance then is on; None = all are levels."""
        odd = [f"{end:g}" for end in self if near(end, sigmas) is None]
        if not odd:
            return None
        on, what = self.guides(sigmas), "is no noise level" if len(odd) == 1 else "are no noise levels"
        where = f"guidance is on at {len(on)} of the {len(sigmas)}, {on[0]:.4g} to {on[-1]:.4g}"
        return f"({self.lo:g}, {self.hi:g}]: {' and '.join(odd)} {what}; {where}"


EVERYWHERE = Interval()


def near(end: float, sigmas: Tensor) -> float | None:
    """The level within 2% of an interval's endpoint; None if there is none. 0 and infinity are ends of any schedule."""
    if end == 0 or math.isinf(end):
        return end
    level = min(sigmas.tolist(), key=lambda sigma: abs(sigma - end))
    return level if abs(level - end) <= NEAR * end else None


def guided(denoise: Denoise, guide: Denoise, guidance: float, interval: Interval = EVERYWHERE) -> Denoise:
    """The denoiser guidance * D + (1 - guidance) * D_guide at the levels of the interval, and D at others.

    `guide` is called only there; guidance 1 is `denoise` and never calls it.
    """

    def mixed(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.lerp(guide(x, sigma), denoise(x, sigma), guidance)

    return _within(interval, denoise, mixed, guidance)


def guided_in_one_batch(
    denoise: Callable[[Tensor, Tensor, Tensor], Tensor],
    labels: Tensor,
    guidance: float,
    interval: Interval = EVERYWHERE,
) -> Denoise:
    """`guided` by the same network without labels, both evaluated in one batch of twice the images.

    Args:
        denoise: of (noisy images, sigma, labels).
        labels: int64 class ids [N].
        guidance, interval: as of `guided`.
    """
    both_labels = torch.cat([labels, torch.full_like(labels, -1)])

    def mixed(x: Tensor, sigma: Tensor) -> Tensor:
        main, weaker = denoise(torch.cat([x, x]), sigma, both_labels).chunk(2)
        return torch.lerp(weaker, main, guidance)

    return _within(interval, lambda x, sigma: denoise(x, sigma, labels), mixed, guidance)


def _within(interval: Interval, plain: Denoise, mixed: Denoise, guidance: float) -> Denoise:
    if guidance == 1:
        return plain
    if interval == EVERYWHERE:
        return mixed
    return lambda x, sigma: (mixed if interval.lo < sigma <= interval.hi else plain)(x, sigma)
