"""Feature statistics in one piece, in batches and over ranks, and the Frechet distance of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_statistics_to_metric

from helpers.commands import ROOT
from helpers.forks import run_forked
from helpers.golden_data import load, relative_error
from recipe.evaluation.distances import (
    FeatureStatistics,
    feature_statistics,
    frechet_distance,
    frechet_from_statistics,
)

RANKS = ROOT / "tests" / "helpers" / "statistics_ranks.py"


def features(count: int, width: int = 6, offset: float = 0.0) -> torch.Tensor:
    """Correlated float64 features, `offset` from 0."""
    generator = torch.Generator().manual_seed(count)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing + offset


def test_golden_distance():
    golden, _ = load("frechet")
    ours = frechet_distance(golden["features_a"], golden["features_b"])
    assert ours == pytest.approx(float(golden["frechet_distance"]), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_mean_and_unbiased_covariance(dtype: torch.dtype):
    given = features(50).to(dtype)
    mean, covariance = feature_statistics(given)
    assert mean.dtype == covariance.dtype == torch.float64
    assert relative_error(mean, given.double().mean(dim=0)) < 1e-13
    assert relative_error(covariance, torch.cov(given.double().T)) < 1e-13


def test_batches_of_any_size_add_up():
    given = features(40).float()
    statistics = FeatureStatistics(6)
    for batch in given.split([1, 0, 22, 17]):
        statistics.update(batch)
    for ours, whole in zip(statistics.compute(), feature_statistics(given), strict=True):
        assert relative_error(ours, whole) < 1e-12
    statistics.reset()
    statistics.update(given[:1])
    with pytest.raises(ValueError, match="needs at least 2 features, and there are 1"):
        statistics.compute()


@pytest.mark.parametrize("offset", [10.0, 1e3, 1e5])
def test_features_far_from_zero_lose_less_than_float32_did(offset: float):
    """Cancellation in the sums stays below what rounding the features to float32 changes."""
    exact = features(500, offset=offset)
    covariance = torch.cov(exact.T)
    rounding = relative_error(torch.cov(exact.float().double().T), covariance)
    ours = feature_statistics(exact.float())[1]
    assert relative_error(ours, torch.cov(exact.float().double().T)) < 0.1 * rounding


def test_distance_of_known_gaussians():
    """Diagonal covariances: |m_a - m_b|^2 + sum (s_a - s_b)^2."""
    mean_a, mean_b = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, 3.5])
    s_a, s_b = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 2.0, 1.0])
    ours = frechet_from_statistics(mean_a, torch.diag(s_a**2), mean_b, torch.diag(s_b**2))
    assert ours == pytest.approx(4 + 0.25 + 4 + 0 + 1, rel=1e-12)


def test_distance_of_a_set_to_itself_and_of_a_single_feature():
    given = features(4, width=6)  # a singular covariance
    assert frechet_distance(given, given) == pytest.approx(0, abs=1e-6 * float(torch.cov(given.T).trace()))
    one, other = features(30, width=1), 3 * features(31, width=1) + 1
    expected = float((one.mean() - other.mean()) ** 2 + (one.std() - other.std()) ** 2)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("count", "others"), [(400, 300), (20, 300)], ids=["full rank", "fewer than features"])
def test_distance_equals_torch_fidelitys(count: int, others: int):
    """Theirs takes the roots of the eigenvalues of a product, which has half the digits where the rank is not full."""
    a, b = features(count, 40, 0.5), features(others, 40)
    statistics = [{"mu": part.mean(dim=0).numpy(), "sigma": np.cov(part.numpy(), rowvar=False)} for part in (a, b)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-8 if count > 40 else 1e-6)


def test_rounding_of_a_singular_covariance_does_not_show():
    """Of fewer samples than features: their order changes the sums' last digits, and the distance no more than that."""
    a, b = features(20, 40, 0.5), features(30, 40)
    found = [frechet_distance(a[order], b) for order in (torch.arange(20), torch.randperm(20), torch.randperm(20))]
    assert found[1:] == pytest.approx([found[0]] * 2, rel=1e-12)


@pytest.mark.parametrize("shape", [(1, 4), (0, 4), (4,), (2, 2, 4)])
def test_features_without_a_covariance_are_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="are not \\[N, D\\] with N >= 2"):
        frechet_distance(torch.zeros(shape), torch.zeros(8, 4))


def test_features_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"features of shape \[3, 5\] are not \[N, 4\]"):
        FeatureStatistics(4).update(torch.zeros(3, 5))


@pytest.mark.slow
def test_two_ranks_give_the_statistics_of_one(tmp_path: Path):
    """Shares of other sizes, and a rank without any."""
    given = features(40).float()
    cases = []
    for shares in ([7, 20], [13]), ([40], [0]):
        pieces = iter(given.split([size for share in shares for size in share]))
        cases.append([[next(pieces) for _ in share] for share in shares])
    torch.save(cases, tmp_path / "in.pt")
    done = run_forked(RANKS, tmp_path / "in.pt", tmp_path / "out.pt", ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    for found in torch.load(tmp_path / "out.pt"):
        assert len(found) == 2
        for mean, covariance in found:
            assert relative_error(mean, given.double().mean(dim=0)) < 1e-12
            assert relative_error(covariance, torch.cov(given.double().T)) < 1e-12
