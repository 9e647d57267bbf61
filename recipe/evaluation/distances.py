"""The Frechet distance between two sets of features, of which FID and FD_DINOv2 are instances."""

import torch
from torch import Tensor
from torchmetrics import Metric


class FeatureStatistics(Metric):
    """Mean and covariance of features that arrive in batches, on any number of ranks.

    Running sums in float64, which torchmetrics adds over the ranks when `compute` is called; a rank may have had
    only empty batches. The sums are not shifted by a first batch's mean, as that mean is another one on each rank.
    Float64 does not need it: if the mean is r standard deviations from 0, the difference of sums has a relative error
    of about 1e-16 r^2, and features in float32 have one of about 1e-7 r already, which is more up to r = 1e9.

    Args:
        num_features: width D of the features.
        kwargs: of `torchmetrics.Metric`; `sync_on_compute=False` keeps to this rank's features.
    """

    full_state_update = False  # `forward` need not compute from all features to give a batch's statistics
    count: Tensor
    total: Tensor
    products: Tensor

    def __init__(self, num_features: int, **kwargs: bool):
        super().__init__(**kwargs)
        self.num_features = num_features
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(num_features, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("products", torch.zeros(num_features, num_features, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, features: Tensor) -> None:
        """Add features [N, D], N >= 0. Raises ValueError if they have another shape."""
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise ValueError(f"features of shape {list(features.shape)} are not [N, {self.num_features}]")
        features = features.double()
        self.count += len(features)
        self.total += features.sum(dim=0)
        self.products += features.T @ features

    def compute(self) -> tuple[Tensor, Tensor]:
        """Mean [D] and unbiased covariance [D, D] in float64. Raises ValueError with fewer than 2 features."""
        return moments(self.count, self.total, self.products)


def moments(count: Tensor, total: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and unbiased covariance [D, D] from the sums of `FeatureStatistics`. Raises ValueError if count < 2."""
    if count < 2:
        raise ValueError(f"a covariance needs at least 2 features, and there are {int(count)}")
    mean = total / count
    return mean, (products - torch.outer(total, mean)) / (count - 1)


def feature_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and unbiased covariance [D, D] of features [N, D], in float64; N >= 2."""
    if features.ndim != 2 or features.shape[0] < 2:
        raise ValueError(f"features of shape {list(features.shape)} are not [N, D] with N >= 2")
    statistics = FeatureStatistics(features.shape[1], sync_on_compute=False).to(features.device)
    statistics.update(features)
    return statistics.compute()


def frechet_from_statistics(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """|mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)) in float64."""
    cov_a, cov_b = (torch.atleast_2d(cov.double()) for cov in (cov_a, cov_b))  # torchmetrics squeezes [1, 1] to []
    # The eigenvalues of cov_a cov_b are the squares of the singular values of factor_a^T factor_b. These are had to the
    # last digits of the largest, which would leave the square roots of small eigenvalues with half as many digits.
    cross = torch.linalg.svdvals(_factor(cov_a).T @ _factor(cov_b)).sum()
    distance = (mean_a.double() - mean_b.double()).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return float(distance)


def _factor(cov: Tensor) -> Tensor:
    """F [D, r] with F F^T = cov [D, D], r its rank. What is zero up to rounding counts as zero: of fewer samples than
    features most eigenvalues are, and the roots of their rounding errors would not be small."""
    values, vectors = torch.linalg.eigh(cov)
    kept = values > len(values) * torch.finfo(cov.dtype).eps * values.abs().max()
    return vectors[:, kept] * values[kept].sqrt()


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Frechet distance of feature sets [N, D] and [M, D], N and M >= 2, with unbiased covariances."""
    return frechet_from_statistics(*feature_statistics(features_a), *feature_statistics(features_b))
