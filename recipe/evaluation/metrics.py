"""The metrics by name: what each needs, and how it comes from two sets of features."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recipe.evaluation.distances import frechet_from_statistics
from recipe.evaluation.feature_set import EvaluationError, FeatureSet
from recipe.evaluation.inception_score import SPLITS, inception_score
from recipe.evaluation.kernel_distance import SUBSET_SIZE, kernel_distance
from recipe.evaluation.neighbours import DENSITY_K, PRECISION_K, density_coverage, precision_recall

Values = Mapping[str, float]


@dataclass(frozen=True)
class Metric:
    """One of `--metrics`.

    Attributes:
        values: what it gives, the first of which is compared.
        least: number of pictures that it needs of each set that it looks at.
        compute: the values of the pictures' features against the reference's, computed on a device.
        keeps_features: it needs the features of both sets, not only their moments.
        keeps_logits: it needs a classifier's logits of the pictures, and no reference.
    """

    values: Sequence[str]
    least: int
    compute: Callable[[FeatureSet, FeatureSet, torch.device], tuple[float, ...]]
    keeps_features: bool = False
    keeps_logits: bool = False


def _kept(features: Tensor | None, device: torch.device) -> Tensor:
    assert features is not None, "asked for before the features were computed"
    return features.to(device)


def _frechet(pictures: FeatureSet, reference: FeatureSet, device: torch.device) -> tuple[float]:
    tensors = pictures.mean, pictures.covariance, reference.mean, reference.covariance
    return (frechet_from_statistics(*(tensor.to(device) for tensor in tensors)),)


def _of_features(function: Callable[[Tensor, Tensor], tuple[float, ...]]) -> Callable[..., tuple[float, ...]]:
    def compute(pictures: FeatureSet, reference: FeatureSet, device: torch.device) -> tuple[float, ...]:
        return function(_kept(pictures.features, device), _kept(reference.features, device))

    return compute


def _score(pictures: FeatureSet, reference: FeatureSet, device: torch.device) -> tuple[float, ...]:
    return inception_score(_kept(pictures.logits, device))


METRICS: Mapping[str, Metric] = {
    "fd": Metric(["fd"], 2, _frechet),
    "kid": Metric(["kid", "kid_std"], SUBSET_SIZE, _of_features(kernel_distance), keeps_features=True),
    "pr": Metric(["precision", "recall"], PRECISION_K + 1, _of_features(precision_recall), keeps_features=True),
    "dc": Metric(["density", "coverage"], DENSITY_K + 1, _of_features(density_coverage), keeps_features=True),
    "is": Metric(["is", "is_std"], SPLITS, _score, keeps_logits=True),
}


def chosen(names: Sequence[str]) -> Sequence[Metric]:
    """The metrics of these names. Raises EvaluationError for another name."""
    for name in names:
        if name not in METRICS:
            raise EvaluationError(f"--metrics {name}: must be among {', '.join(METRICS)}")
    return [METRICS[name] for name in names]


def values_of(names: Sequence[str], pictures: FeatureSet, reference: FeatureSet, device: torch.device) -> Values:
    """The values of the metrics of these names, computed on a device. Raises EvaluationError for too few pictures."""
    if pictures.count is not None:
        check_enough(names, pictures.count, "the set has")
    found: dict[str, float] = {}
    for metric in chosen(names):
        found |= zip(metric.values, metric.compute(pictures, reference, device), strict=True)
    return found


def check_enough(names: Sequence[str], count: int, what: str) -> None:
    """Raises EvaluationError if there are too few pictures for one of the metrics.

    Args:
        what: has so many, for messages: "the set has".
    """
    for name, metric in zip(names, chosen(names), strict=True):
        if count < metric.least:
            raise EvaluationError(f"--metrics {name}: needs at least {metric.least} pictures, but {what} {count}")
