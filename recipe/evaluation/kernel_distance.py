"""KID, the kernel distance between two sets of features (Binkowski et al., 2018, "Demystifying MMD GANs")."""

import numpy as np
import torch
from torch import Tensor

SUBSETS, SUBSET_SIZE = 100, 1000  # as torch-fidelity has them
SEED = 2020  # which subsets are drawn


def kernel_distance(
    features: Tensor, reference: Tensor, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE
) -> tuple[float, float]:
    """Mean and standard deviation over random subsets of the squared maximum mean discrepancy, unbiased.

    The kernel is k(x, y) = (x . y / D + 1)^3. In float64: the sums of a kernel of this degree nearly cancel.

    Args:
        features: [N, D], N >= subset_size.
        reference: [M, D], M >= subset_size.
        subsets: how many are drawn, the same ones for the same N and M.
        subset_size: n of each, at least 2.
    """
    assert min(len(features), len(reference)) >= subset_size >= 2, (len(features), len(reference), subset_size)
    choose = np.random.RandomState(SEED)
    found = []
    for _ in range(subsets):
        parts = []
        for each in features, reference:
            rows = torch.from_numpy(choose.choice(len(each), subset_size, replace=False))
            parts.append(each[rows.to(each.device)].double())
        found.append(_discrepancy(*parts))
    return float(np.mean(found)), float(np.std(found))


def _discrepancy(x: Tensor, y: Tensor) -> float:
    """Unbiased estimate from two sets [n, D]: no feature is compared with itself (their equation 4)."""
    n = len(x)
    same = sum(_kernel(each, each).sum() - _kernel_with_itself(each).sum() for each in (x, y))
    return float(same / (n * (n - 1)) - 2 * _kernel(x, y).mean())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _kernel_with_itself(x: Tensor) -> Tensor:
    """The diagonal of `_kernel(x, x)`."""
    return (x.square().sum(dim=1) / x.shape[1] + 1) ** 3
