"""Where churn begins and ends: at S_min and S_max themselves it is on."""

import math

import pytest
import torch

from recipe.edm2.samplers.heun import heun
from recipe.edm2.samplers.schedule import sigma_steps

LEVELS = sigma_steps(8)
SIGMAS = LEVELS.tolist()[:-1]


def churned(S_min: float, S_max: float) -> int:
    """Steps that added noise, of 8."""
    calls = 0

    def noise(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return torch.zeros_like(x)

    start = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    heun(lambda x, sigma: 0 * x, start, LEVELS, S_churn=1, S_min=S_min, S_max=S_max, randn_like=noise)
    return calls


@pytest.mark.parametrize(
    ("S_min", "S_max", "steps"),
    [
        (0, math.inf, 8),
        (SIGMAS[3], SIGMAS[3], 1),
        (SIGMAS[5], SIGMAS[2], 4),
        (math.nextafter(SIGMAS[5], math.inf), SIGMAS[2], 3),
        (SIGMAS[5], math.nextafter(SIGMAS[2], 0), 3),
        (SIGMAS[7], SIGMAS[0], 8),
        (81, 90, 0),
        (0, 0.001, 0),
    ],
)
def test_limits_of_churn_belong_to_it(S_min: float, S_max: float, steps: int):
    assert churned(S_min, S_max) == steps
