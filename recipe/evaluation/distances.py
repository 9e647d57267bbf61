"""The Frechet distance between two sets of features, of which FID and FD_DINOv2 are instances."""

import torch
from torch import Tensor


def feature_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and unbiased covariance [D, D] of features [N, D], in float64; N >= 2."""
    if features.ndim != 2 or features.shape[0] < 2:
        raise ValueError(f"features of shape {list(features.shape)} are not [N, D] with N >= 2")
    features = features.double()
    return features.mean(dim=0), torch.cov(features.T).reshape(features.shape[1], features.shape[1])


def frechet_from_statistics(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """|mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)) in float64."""
    # The eigenvalues of cov_a cov_b are those of the symmetric root_a cov_b root_a, which stays real when the
    # covariances are singular (fewer samples than features); the general matrix square root does not.
    values, vectors = torch.linalg.eigh(cov_a.double())
    root_a = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root_a @ cov_b.double() @ root_a).clamp(min=0).sqrt().sum()
    distance = (mean_a.double() - mean_b.double()).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return float(distance)


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Frechet distance of feature sets [N, D] and [M, D], N and M >= 2, with unbiased covariances."""
    return frechet_from_statistics(*feature_statistics(features_a), *feature_statistics(features_b))
