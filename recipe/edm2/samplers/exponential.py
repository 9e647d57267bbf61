"""One step of an exponential integrator: exact where the denoised image is a polynomial in lambda = -ln sigma.

With data x0 and x = x0 + sigma * noise (alpha = 1), the probability flow is dx/dlambda = D - x, and the reverse SDE
with eta times its noise has the drift (1 + eta) * (D - x). Over a step of length h in lambda, with H = (1 + eta) h and
u in [0, 1] the part of it that is done, the solution is

    x_next = exp(-H) x + integral over u of H exp(-H (1 - u)) D(u) + noise of variance sigma_next^2 (1 - exp(-2 eta h))

(Lu et al. 2022, "DPM-Solver++", Proposition 4.1; the SDE likewise). A multistep method puts the polynomial through the
last few denoised images in place of D(u).
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Rule = Literal["midpoint", "exact"]


class Denoised(NamedTuple):
    """What a denoiser made at one noise level."""

    log_snr: float  # lambda = -ln sigma
    image: Tensor


def moments(H: float, count: int) -> list[float]:
    """Integrals over [0, 1] of H exp(-H (1 - u)) u^k for k = 0 ... count - 1, H > 0.

    Moment 0 is -expm1(-H), moment 1 is 1 + expm1(-H) / H.
    """
    if H < 1:  # the recursion below would cancel: the series sum of -(-H)^m k! / (k + m)!
        terms = [
            [-((-H) ** m) * math.exp(math.lgamma(k + 1) - math.lgamma(k + m + 1)) for m in range(1, 20)]
            for k in range(count)
        ]
        return [math.fsum(series) for series in terms]
    found = [-math.expm1(-H)]
    for k in range(1, count):  # by parts
        found.append(1 - k / H * found[-1])
    return found


def weights(H: float, points: Sequence[float], rule: Rule = "exact") -> list[float]:
    """What the denoised images at `points` enter the integral with.

    Args:
        H: (1 + eta) h.
        points: where they lie, in steps (u); the first is 0, no two are equal.
        rule: midpoint = with two points, integrate the slope by its value in the middle, as DPM-Solver++(2M) and UniPC
            do; the order is the same.
    """
    moment = moments(H, len(points))
    if rule == "midpoint" and len(points) == 2:
        moment[1] = moment[0] / 2
    powers = torch.tensor(points, dtype=torch.float64) ** torch.arange(len(points))[:, None]
    return torch.linalg.solve(powers, torch.tensor(moment, dtype=torch.float64)).tolist()


def step(x: Tensor, h: float, known: Sequence[Denoised], eta: float = 0.0, rule: Rule = "exact") -> Tensor:
    """`x` one step further, without its noise.

    Args:
        x: images at the first of the known levels.
        h: length of the step in lambda, above 0; infinite = to sigma 0, where x becomes the denoised image itself.
        known: denoised images that the polynomial goes through, the one of `x` first.
        eta: noise of the SDE; 0 = the probability flow.
        rule: see `weights`.
    """
    here = known[0]
    if math.isinf(h):
        return here.image
    points = [(other.log_snr - here.log_snr) / h for other in known]
    H = (1 + eta) * h
    x = math.exp(-H) * x
    for weight, (_, image) in zip(weights(H, points, rule), known, strict=True):
        x = x + weight * image
    return x


def log_snrs(sigmas: Tensor) -> list[float]:
    """lambda = -ln sigma of each level, infinite at 0."""
    return (-sigmas.double().log()).tolist()
