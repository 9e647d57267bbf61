"""The samplers by name, and the settings that each takes; without torch, so that bad ones are refused before it loads.

Names and settings are those of k-diffusion where it has them, and else of the papers.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias

Name: TypeAlias = Literal[
    "heun", "euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "unipc", "restart"
]
SolverType: TypeAlias = Literal["midpoint", "heun"]
Restart: TypeAlias = Sequence[float]  # [N_restart, K, t_min, t_max]

OPTIONS: dict[Name, tuple[str, ...]] = {
    "heun": ("S_churn", "S_min", "S_max", "S_noise"),
    "euler": (),
    "euler_ancestral": ("eta", "S_noise"),
    "dpmpp_2m": (),
    "dpmpp_2m_sde": ("eta", "S_noise", "solver_type"),
    "dpmpp_3m_sde": ("eta", "S_noise"),
    "unipc": ("order",),
    "restart": ("restart", "S_noise"),
}
"""What each takes beside the schedule. Those with S_noise can add noise; the others have the first noise alone."""

RESTART: tuple[Restart, ...] = ((3, 2, 0.06, 0.30),)
"""The interval that Xu et al. (2023) use at the fewest evaluations of CIFAR-10: 8 more than Heun without."""


def takers(option: str) -> list[str]:
    """Names of the samplers that take a setting."""
    return [name for name, options in OPTIONS.items() if option in options]


def check_restarts(restarts: Sequence[Restart]) -> None:
    """Raises ValueError if the intervals of restarts are none."""
    if not restarts:
        raise ValueError("[]: names no interval; write for example [[3, 2, 0.06, 0.3]]")
    for given in restarts:
        whole = len(given) == 4 and given[0] == int(given[0]) and given[1] == int(given[1])
        if not whole or given[0] < 2 or given[1] < 1 or not 0 < given[2] < given[3]:
            rule = "must be [N, K, t_min, t_max]: N >= 2 noise levels, K >= 1 times, 0 < t_min < t_max"
            raise ValueError(f"{list(given)}: {rule}")
