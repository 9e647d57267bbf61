"""What part of two sets of features lies near the other: precision and recall, density and coverage.

Each feature of a set stands for the ball around it that reaches to its k-th nearest neighbour within the set.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 1 << 26  # distances that are in memory at once, in float64
PRECISION_K, DENSITY_K = 3, 5  # neighbours, as in the papers


def precision_recall(features: Tensor, reference: Tensor, k: int = PRECISION_K) -> tuple[float, float]:
    """Shares of `features` within balls of `reference`, and of `reference` within balls of `features`.

    Kynkäänniemi et al., 2019, "Improved Precision and Recall Metric for Assessing Generative Models", equations 1 to 3.

    Args:
        features: [N, D], N > k.
        reference: [M, D], M > k.
        k: which neighbour a ball reaches to.
    """
    return _share_within(features, reference, k), _share_within(reference, features, k)


def density_coverage(features: Tensor, reference: Tensor, k: int = DENSITY_K) -> tuple[float, float]:
    """In how many balls of `reference` a feature lies on average, divided by k; share of these balls that hold one.

    Naeem et al., 2020, "Reliable Fidelity and Diversity Metrics for Generative Models", equations 3 and 4, with balls
    without their surface, as in the authors' code.

    Args:
        features: [N, D], N > k.
        reference: [M, D], M > k.
        k: which neighbour a ball reaches to.
    """
    radii = neighbour_distances(reference, k)
    within, covered = 0, 0
    for rows, distances in _distances(reference, features):
        inside = distances < radii[rows, None]
        within += int(inside.sum())
        covered += int(inside.any(dim=1).sum())
    return within / (k * len(features)), covered / len(reference)


def neighbour_distances(features: Tensor, k: int) -> Tensor:
    """Distance of each feature [N, D] to its k-th nearest neighbour among the others, float64 [N]; N > k."""
    assert len(features) > k, (len(features), k)
    parts = [distances.kthvalue(k + 1).values for _, distances in _distances(features, features)]  # itself is nearest
    return torch.cat(parts)


def _share_within(features: Tensor, reference: Tensor, k: int) -> float:
    radii = neighbour_distances(reference, k)
    within = sum(int((distances <= radii).any(dim=1).sum()) for _, distances in _distances(features, reference))
    return within / len(features)


def _distances(features: Tensor, others: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Euclidean distances in float64 of some features at a time to all others: their rows, and [n, M]."""
    features, others = features.double(), others.double()
    step = max(1, BLOCK // len(others))
    for start in range(0, len(features), step):
        rows = slice(start, min(start + step, len(features)))
        yield rows, torch.cdist(features[rows], others)
