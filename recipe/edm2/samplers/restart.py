"""Restart sampling: Heun's method that goes back up and down again (Xu et al. 2023, arXiv 2306.14878, Algorithm 2)."""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from recipe.edm2.samplers.heun import heun_step
from recipe.edm2.samplers.names import RESTART, Restart, check_restarts
from recipe.edm2.samplers.schedule import Denoise, sigma_steps


@torch.no_grad()
def restart(
    denoise: Denoise,
    noise: Tensor,
    sigmas: Tensor,
    restart: Sequence[Restart] = RESTART,
    S_noise: float = 1.0,
    rho: float = 7.0,
    randn_like: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Tensor:
    """Draw images by Heun's method with restarts; calls `denoise` 2 levels - 1 + sum of 2 K (N - 1) times.

    At t_min, noise lifts the image to t_max, and N - 1 steps of Heun's method lead down again; K times. The new noise
    contracts errors that were made above, while the steps stay deterministic.

    Args:
        denoise, noise, sigmas: as of `heun`.
        restart: intervals [N, K, t_min, t_max]. t_min is taken at the nearest level of the schedule.
        S_noise: scale of the added noise.
        rho: spacing of the levels of a way down; see `sigma_steps`.
        randn_like: makes unit noise like its argument; called K times for each interval.

    Raises:
        ValueError: an interval that is none, or whose t_max is not above t_min's level.
    """
    cycles, num_steps, sigmas = restart_levels(sigmas, restart, rho), len(sigmas) - 1, sigmas.to(noise)
    x = noise * sigmas[0]
    for index in range(num_steps):
        x = heun_step(denoise, x, sigmas[index], sigmas[index + 1], last=index == num_steps - 1)
        for down in cycles.get(index + 1, ()):
            down = down.to(x)
            x = x + (down[0] ** 2 - down[-1] ** 2).sqrt() * S_noise * randn_like(x)
            for sigma, sigma_next in itertools.pairwise(down):
                x = heun_step(denoise, x, sigma, sigma_next)
    return x


def restart_levels(levels: Tensor, restarts: Sequence[Restart], rho: float = 7.0) -> dict[int, list[Tensor]]:
    """What is done at which level: its index -> the levels of each way down, from t_max to it.

    Args:
        levels: of the schedule, [num_steps + 1], the last one 0.
        restarts: intervals [N, K, t_min, t_max].
        rho: spacing of the levels of a way down.

    Raises:
        ValueError: see `restart`.
    """
    check_restarts(restarts)
    found: dict[int, list[Tensor]] = {}
    for number, times, t_min, t_max in restarts:
        index = int((levels[:-1] - t_min).abs().argmin())
        nearest = levels[index].item()
        if index == 0 or nearest >= t_max:
            where = "the first" if index == 0 else f"{nearest:.4g}, not below t_max {t_max:g}"
            raise ValueError(f"restart [{number:g}, {times:g}, {t_min:g}, {t_max:g}]: t_min's nearest level is {where}")
        found.setdefault(index, []).extend([sigma_steps(int(number), nearest, t_max, rho)[:-1]] * int(times))
    return found
