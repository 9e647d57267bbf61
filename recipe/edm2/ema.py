"""Power-function EMA and its post-hoc reconstruction (Section 3, Appendix C).

Times are in images seen (`nimg`). The length of an average is given as sigma_rel, the standard deviation of its profile
relative to the training time; gamma is the exponent of the profile. Everything here but the update is float64.
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from recipe.edm2.sharded_tensors import local

SIGMA_REL_LIMIT = 12**-0.5  # gamma = 0: a uniform average, the longest that the family holds


def sigma_rel_from_gamma(gamma: float) -> float:
    """Relative standard deviation of the profile t^gamma, gamma > -1 (eq. 123)."""
    if not gamma > -1:
        raise ValueError(f"gamma {gamma} is not above -1")
    return float(((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5)


@functools.cache  # asked for after every step of training
def gamma_from_sigma_rel(sigma_rel: float) -> float:
    """Exponent of the profile with that relative standard deviation: the positive root of eq. 126.

    Raises:
        ValueError: unless 0 < sigma_rel < 12^-0.5 = 0.2887.
    """
    if not 0 < sigma_rel < SIGMA_REL_LIMIT:
        raise ValueError(f"sigma_rel {sigma_rel} is not in the range 0 < sigma_rel < {SIGMA_REL_LIMIT:.4f} (12^-0.5)")
    inverse = float(sigma_rel) ** -2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def power_function_beta(sigma_rel: float, t_next: float, t_delta: float) -> float:
    """Decay of the update ema = beta * ema + (1 - beta) * weights (eq. 127).

    Args:
        sigma_rel: length of the average.
        t_next: images seen at the update, the step just taken included.
        t_delta: images since the previous update; any length is exact for weights that were constant in between.
    """
    return float((1 - t_delta / t_next) ** (gamma_from_sigma_rel(sigma_rel) + 1))


@torch.no_grad()
def update_ema_(averages: Sequence[Tensor], weights: Sequence[Tensor], beta: float) -> None:
    """Move each average towards its weight in place: ema = beta * ema + (1 - beta) * weight.

    beta = 0 copies, whatever the averages held: not even a NaN survives. Of sharded tensors this rank's rows move.
    """
    own, new = [local(average) for average in averages], [local(weight) for weight in weights]
    if beta == 0:
        torch._foreach_copy_(own, new)  # pyright: ignore[reportPrivateImportUsage]
    else:
        torch._foreach_lerp_(own, new, 1 - beta)  # pyright: ignore[reportPrivateImportUsage]


def profile_dot(t_a: ArrayLike, gamma_a: ArrayLike, t_b: ArrayLike, gamma_b: ArrayLike) -> NDArray[np.float64]:
    """Inner products of power-function profiles that end at `t_a` and `t_b` (eq. 151), broadcast over the arguments."""
    t_a, gamma_a, t_b, gamma_b = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in (t_a, gamma_a, t_b, gamma_b)))
    earlier, later = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    # Only the ratio, at most 1, is raised to a power: t^gamma itself would overflow for short averages.
    power = (earlier / later) ** np.where(t_a < t_b, gamma_b, gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) * power / ((gamma_a + gamma_b + 1) * later)


def _profiles(nimg: ArrayLike, sigma_rel: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Equally long arrays of end times and exponents; a single value is repeated to the other's length."""
    times, lengths = np.broadcast_arrays(np.atleast_1d(nimg).astype(np.float64), np.atleast_1d(sigma_rel))
    if not (times > 0).all():
        raise ValueError(f"an average ends after 0 images or fewer: {times.min():g}")
    return times, np.array([gamma_from_sigma_rel(value) for value in lengths])


def solve_posthoc_coefficients(
    in_nimg: ArrayLike, in_sigma_rel: ArrayLike, out_nimg: ArrayLike, out_sigma_rel: ArrayLike
) -> NDArray[np.float64]:
    """Coefficients [in, out] that combine stored averages into the wanted ones (Algorithm 3, eq. 138-151).

    Each column is the least-squares fit of the wanted profile by the stored ones, then scaled to sum to 1: Algorithm 3
    leaves that last step out, the official code has it, and short runs need it.

    Args:
        in_nimg, in_sigma_rel: time and length of each stored average.
        out_nimg, out_sigma_rel: time and length of each wanted average.

    Raises:
        ValueError: a time or length out of range, no stored average, or the same one given twice.
    """
    in_t, in_gamma = _profiles(in_nimg, in_sigma_rel)
    out_t, out_gamma = _profiles(out_nimg, out_sigma_rel)
    if len(in_t) == 0:
        raise ValueError("no stored average was given")
    if len(set(zip(in_t, in_gamma, strict=True))) < len(in_t):
        raise ValueError("two stored averages have the same nimg and sigma_rel")
    gram = profile_dot(in_t[:, None], in_gamma[:, None], in_t, in_gamma)
    overlap = profile_dot(in_t[:, None], in_gamma[:, None], out_t, out_gamma)
    coefficients = np.linalg.solve(gram, overlap)
    return coefficients / coefficients.sum(axis=0)


def profile_error(
    in_nimg: ArrayLike, in_sigma_rel: ArrayLike, out_nimg: ArrayLike, out_sigma_rel: ArrayLike, coefficients: ArrayLike
) -> NDArray[np.float64]:
    """Relative L2 error [out] of the combined profiles against the wanted ones (Figure 4): 0 is exact, 1 is useless."""
    in_t, in_gamma = _profiles(in_nimg, in_sigma_rel)
    out_t, out_gamma = _profiles(out_nimg, out_sigma_rel)
    x = np.asarray(coefficients, np.float64)
    gram = profile_dot(in_t[:, None], in_gamma[:, None], in_t, in_gamma)
    overlap = profile_dot(in_t[:, None], in_gamma[:, None], out_t, out_gamma)
    wanted = profile_dot(out_t, out_gamma, out_t, out_gamma)
    squared = np.einsum("io,ij,jo->o", x, gram, x) - 2 * np.einsum("io,io->o", x, overlap) + wanted
    return np.sqrt(np.maximum(squared, 0) / wanted)  # rounding can leave an exact fit just below zero
