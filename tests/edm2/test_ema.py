"""Power-function averages against their definition, and post-hoc averages against the paper's facts and direct ones."""

import numpy as np
import pytest
import torch

from recipe.edm2 import ema

TRACKED = (0.05, 0.10)


def pairs(times: list[int]) -> tuple[list[int], list[float]]:
    """Time and length of each stored average: at every time those of `TRACKED`."""
    return [time for time in times for _ in TRACKED], [length for _ in times for length in TRACKED]


def evenly(count: int) -> tuple[list[int], list[float]]:
    return pairs(list(range(1, count + 1)))


@pytest.mark.parametrize(("interval", "sigma_rel"), [(1, 0.05), (7, 0.10), (100, 0.25)])
def test_average_of_a_ramp(interval: int, sigma_rel: float):
    """The averages of t/T and (t/T)^2 give the mean and the standard deviation of the profile itself."""
    updates = 20_000
    averages = [torch.full((2,), 1e6, dtype=torch.float64)]
    for index in range(1, updates + 1):
        t = index / updates
        beta = ema.power_function_beta(sigma_rel, index * interval, interval)
        ema.update_ema_(averages, [torch.tensor([t, t * t], dtype=torch.float64)], beta)
    mean, square = averages[0].tolist()
    gamma = ema.gamma_from_sigma_rel(sigma_rel)
    # A step of 1/20000 blurs times by half of it, which is 5e-4 of the shortest length.
    assert mean == pytest.approx((gamma + 1) / (gamma + 2), rel=1e-4)
    assert (square - mean**2) ** 0.5 == pytest.approx(sigma_rel, rel=1e-3)


def test_decay_does_not_depend_on_how_constant_weights_are_split():
    whole = ema.power_function_beta(0.1, 1000, 300)
    parts = [ema.power_function_beta(0.1, t, delta) for t, delta in ((701, 1), (800, 99), (1000, 200))]
    assert np.prod(parts) == pytest.approx(whole, rel=1e-12)
    gamma = ema.gamma_from_sigma_rel(0.1)
    assert whole == pytest.approx(0.7 ** (gamma + 1), rel=1e-12)


def test_update_moves_each_average_in_place():
    weights = [torch.randn(3, 4), torch.randn(1)]
    averages = [torch.randn(3, 4), torch.randn(1)]
    expected = [0.9 * average + 0.1 * weight for average, weight in zip(averages, weights, strict=True)]
    pointers = [average.data_ptr() for average in averages]
    ema.update_ema_(averages, weights, 0.9)
    for average, value in zip(averages, expected, strict=True):
        torch.testing.assert_close(average, value, rtol=1e-5, atol=1e-6)
    assert [average.data_ptr() for average in averages] == pointers


def test_first_update_copies_and_no_nan_survives_it():
    assert ema.power_function_beta(0.05, 64, 64) == 0
    weights = [torch.randn(5, requires_grad=True)]
    averages = [torch.full((5,), torch.nan)]
    ema.update_ema_(averages, weights, 0.0)
    assert torch.equal(averages[0], weights[0])
    assert averages[0].data_ptr() != weights[0].data_ptr()


@pytest.mark.parametrize("gamma", [-0.5, 0.0, 0.7198, 6.9372, 16.9722, 97.0, 5000.0])
def test_round_trip(gamma: float):
    sigma_rel = ema.sigma_rel_from_gamma(gamma)
    if gamma > 0:
        assert ema.gamma_from_sigma_rel(sigma_rel) == pytest.approx(gamma, rel=1e-9)
    t = (np.arange(1_000_000) + 0.5) / 1_000_000
    mean = np.average(t, weights=t**gamma)
    assert sigma_rel == pytest.approx(np.average((t - mean) ** 2, weights=t**gamma) ** 0.5, rel=2e-3)


@pytest.mark.parametrize(
    ("sigma_rel", "gamma"),
    [(0.05, 16.9722), (0.10, 6.9372), (0.15, 3.5579), (0.20, 1.8262), (0.25, 0.7198), (0.015, 63.66), (0.01, 96.99)],
)
def test_exponents_of_known_lengths(sigma_rel: float, gamma: float):
    assert ema.gamma_from_sigma_rel(sigma_rel) == pytest.approx(gamma, rel=1e-4)


@pytest.mark.parametrize("sigma_rel", [-0.1, 0.0, 12**-0.5, 0.3, float("nan")])
def test_lengths_out_of_range(sigma_rel: float):
    with pytest.raises(ValueError, match=r"not in the range 0 < sigma_rel < 0\.2887"):
        ema.gamma_from_sigma_rel(sigma_rel)
    with pytest.raises(ValueError, match="not in the range"):
        ema.solve_posthoc_coefficients(*evenly(4), 4, sigma_rel)


def test_exponent_out_of_range():
    with pytest.raises(ValueError, match="gamma -1 is not above -1"):
        ema.sigma_rel_from_gamma(-1)


@pytest.mark.parametrize(
    ("t_a", "gamma_a", "t_b", "gamma_b"), [(3.0, 2.0, 5.0, 0.7), (5.0, 17.0, 2.0, 7.0), (4, 3, 4, 9)]
)
def test_inner_product_is_the_integral(t_a: float, gamma_a: float, t_b: float, gamma_b: float):
    steps = 200_000
    t = (np.arange(steps) + 0.5) / steps * min(t_a, t_b)
    product = (gamma_a + 1) * t**gamma_a / t_a ** (gamma_a + 1) * (gamma_b + 1) * t**gamma_b / t_b ** (gamma_b + 1)
    ours = ema.profile_dot(t_a, gamma_a, t_b, gamma_b)
    assert float(ours) == pytest.approx(product.mean() * min(t_a, t_b), rel=1e-6)
    assert float(ema.profile_dot(t_b, gamma_b, t_a, gamma_a)) == pytest.approx(float(ours), rel=1e-12)


def test_inner_product_of_short_averages_at_real_times_is_finite():
    assert np.isfinite(ema.profile_dot(2**31, 5000.0, 2**23, 5000.0))
    assert float(ema.profile_dot(2**31, 5000.0, 2**31, 5000.0)) == pytest.approx(5001**2 / 10001 / 2**31)


@pytest.mark.parametrize("count", [2, 8, 32, 64])
def test_coefficients_sum_to_1(count: int):
    lengths = [0.015, 0.05, 0.13, 0.25]
    coefficients = ema.solve_posthoc_coefficients(*evenly(count), count, lengths)
    assert coefficients.shape == (2 * count, 4)
    np.testing.assert_allclose(coefficients.sum(axis=0), 1, rtol=1e-10)


def test_tracked_averages_are_reproduced():
    times, lengths = evenly(32)
    coefficients = ema.solve_posthoc_coefficients(times, lengths, times, lengths)
    # The Gram matrix has condition number 1e5: rounding of 1e-16 becomes at most some 1e-11.
    np.testing.assert_allclose(coefficients, np.eye(64), rtol=0, atol=1e-9)
    # The error is the root of a difference that rounds at 1e-16.
    assert ema.profile_error(times, lengths, times, lengths, coefficients).max() <= 1e-7


@pytest.mark.parametrize(
    ("count", "sigma_rel", "error"),
    [(8, 0.13, 1.9e-2), (32, 0.13, 1.3e-3), (64, 0.13, 3.4e-4), (64, 0.015, 2.3e-2), (64, 0.25, 1.5e-2)],
)
def test_errors_of_known_profiles(count: int, sigma_rel: float, error: float):
    wanted = count * 2**23, sigma_rel
    given = pairs([index * 2**23 for index in range(1, count + 1)])
    coefficients = ema.solve_posthoc_coefficients(*given, *wanted)
    ours = ema.profile_error(*given, *wanted, coefficients)
    assert ours.shape == (1,)
    assert float(ours[0]) == pytest.approx(error, rel=0.05)  # two digits are known


def test_error_is_the_distance_between_the_profiles():
    given, wanted = evenly(4), ([4, 3], [0.2, 0.08])
    coefficients = np.random.default_rng(0).normal(size=(8, 2))
    steps = 100_000
    t = (np.arange(steps) + 0.5) / steps * 4

    def profile(end: float, sigma_rel: float) -> np.ndarray:
        gamma = ema.gamma_from_sigma_rel(sigma_rel)
        return np.where(t < end, (gamma + 1) / end * (t / end) ** gamma, 0)

    stored = np.stack([profile(*one) for one in zip(*given, strict=True)])
    target = np.stack([profile(*one) for one in zip(*wanted, strict=True)])
    distance = np.linalg.norm(coefficients.T @ stored - target, axis=1) / np.linalg.norm(target, axis=1)
    np.testing.assert_allclose(ema.profile_error(*given, *wanted, coefficients), distance, rtol=1e-3)


@pytest.mark.parametrize(
    ("times", "lengths", "wanted", "message"),
    [
        ([1, 2, 1], [0.05, 0.05, 0.05], 2, "two stored averages have the same nimg and sigma_rel"),
        ([], [], 2, "no stored average"),
        ([0, 1], [0.05, 0.05], 1, "ends after 0 images or fewer: 0"),
        ([-3, 1], [0.05, 0.05], 1, "ends after 0 images or fewer: -3"),
        ([1, 2], [0.05, 0.05], 0, "ends after 0 images or fewer: 0"),
    ],
)
def test_averages_that_cannot_be_solved(times: list[int], lengths: list[float], wanted: int, message: str):
    with pytest.raises(ValueError, match=message):
        ema.solve_posthoc_coefficients(times, lengths, wanted, 0.13)


def test_posthoc_average_of_a_random_walk_equals_the_direct_one():
    steps, batch, every = 3200, 16, 100
    direct = {length: [torch.zeros(64, dtype=torch.float64)] for length in (*TRACKED, 0.08, 0.13, 0.2)}
    walk = torch.randn(steps, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64).cumsum(dim=0)
    stored, wanted = [], {}
    for step, weights in enumerate(walk, 1):
        for length, average in direct.items():
            ema.update_ema_(average, [weights], ema.power_function_beta(length, step * batch, batch))
        if step % every == 0:
            stored += [direct[length][0].clone() for length in TRACKED]
            wanted[step] = {length: direct[length][0].clone() for length in direct}
    for step in (steps, steps // 2):
        times, lengths = pairs([every * batch * index for index in range(1, step // every + 1)])
        for length in (0.08, 0.13, 0.2):
            coefficients = ema.solve_posthoc_coefficients(times, lengths, step * batch, length)
            posthoc = torch.from_numpy(coefficients[:, 0]) @ torch.stack(stored[: len(times)])
            error = (posthoc - wanted[step][length]).norm() / wanted[step][length].norm()
            assert error <= 0.01, (step, length)
            nearest = min((wanted[step][other] - wanted[step][length]).norm() for other in TRACKED)
            assert nearest > 0.02 * wanted[step][length].norm()  # so that no tracked average would do
