"""Each metric equals torch-fidelity's, or its formula by hand, on the same features in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from recipe.evaluation import neighbours
from recipe.evaluation.inception_score import inception_score
from recipe.evaluation.kernel_distance import kernel_distance
from recipe.evaluation.neighbours import density_coverage, neighbour_distances, precision_recall


def features(count: int, width: int = 16, seed: int = 0, shift: float = 0.0) -> Tensor:
    """Correlated float64 features, some of which are far out."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    spread = torch.rand(count, 1, generator=generator, dtype=torch.float64) + 0.5
    return spread * torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing + shift


@pytest.mark.parametrize(("subsets", "size"), [(100, 60), (7, 300)])
def test_kid(subsets: int, size: int):
    a, b = features(300, seed=1, shift=0.3), features(400, seed=2)
    theirs = kid_features_to_metric(a, b, kid_subsets=subsets, kid_subset_size=size, verbose=False)
    mean, std = kernel_distance(a, b, subsets, size)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-8)
    assert std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-8)


def test_kid_of_a_set_and_itself_is_around_zero():
    """Unbiased: below zero as often as above; a biased estimate of 50 features would always be above."""
    a, b = features(2000, seed=1), features(2000, seed=2)
    mean, std = kernel_distance(a, b, 100, 50)
    assert abs(mean) < 3 * std / 10 and mean != 0


@pytest.mark.parametrize("block", [1 << 26, 1000])
def test_precision_and_recall(block: int, monkeypatch: pytest.MonkeyPatch):
    """Powers of two: torch-fidelity divides in float32."""
    monkeypatch.setattr(neighbours, "BLOCK", block)
    a, b = features(256, 4, seed=1, shift=0.3), features(512, 4, seed=2)
    theirs = prc_features_to_metric(a, b, prc_neighborhood=3, prc_batch_size=100, save_cpu_ram=False, verbose=False)
    precision, recall = precision_recall(a, b)
    assert 0.1 < precision < 0.99 and 0.1 < recall < 0.99 and precision != recall
    assert precision == pytest.approx(theirs["precision"], rel=1e-8)
    assert recall == pytest.approx(theirs["recall"], rel=1e-8)


@pytest.mark.parametrize("block", [1 << 26, 1000])
def test_density_and_coverage(block: int, monkeypatch: pytest.MonkeyPatch):
    """Their definition, element by element."""
    monkeypatch.setattr(neighbours, "BLOCK", block)
    fake, real = features(60, 4, seed=1, shift=0.2).numpy(), features(90, 4, seed=2).numpy()
    radii = [sorted(np.linalg.norm(real - one, axis=1))[5] for one in real]  # [0] is the distance to itself
    inside = np.array([[np.linalg.norm(x - y) < radius for y in fake] for x, radius in zip(real, radii, strict=True)])
    density, coverage = density_coverage(torch.from_numpy(fake), torch.from_numpy(real))
    assert density == pytest.approx(inside.sum() / (5 * 60), rel=1e-12)
    assert coverage == pytest.approx(inside.any(axis=1).mean(), rel=1e-12)
    assert 0.1 < coverage < 0.95


def test_density_and_coverage_of_the_same_distribution():
    """Density is 1 in expectation, and coverage 1 - (N - 1) ... (N - k) / ((2N - 1) ... (2N - k)), their equation 9."""
    found = [density_coverage(features(300, 8, seed=seed), features(300, 8, seed=100 + seed)) for seed in range(6)]
    density, coverage = np.mean(found, axis=0)
    expected = 1 - np.prod([(300 - i) / (600 - i) for i in range(1, 6)])
    assert density == pytest.approx(1, abs=0.1) and coverage == pytest.approx(expected, abs=0.02)


def test_the_nearest_neighbour_is_not_the_feature_itself():
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0]], dtype=torch.float64)
    assert neighbour_distances(line, 1).tolist() == [1, 1, 2, 4]


@pytest.mark.parametrize("count", [1000, 103])
def test_inception_score(count: int):
    logits = 3 * torch.randn(count, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs = isc_features_to_metric(logits)
    mean, std = inception_score(logits)
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-8) and mean > 2
    assert std == pytest.approx(theirs["inception_score_std"], rel=1e-8)
