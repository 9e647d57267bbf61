"""Random numbers that are a function of their key: Philox against its published vectors, then the distribution.

Bounds on estimates are 5 standard errors of the estimate; the numbers are fixed by their seeds, so nothing is flaky.
"""

import pytest
import torch

from recipe.edm2 import rng

KNOWN_ANSWERS = [  # counter, key, result: kat_vectors of Random123, philox4x32 with 10 rounds
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
DRAWS = {"bits": (rng.random_bits, 6), "uniform": (rng.uniform, (2, 3)), "normal": (rng.normal, (2, 3))}


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def largest_correlation(rows: torch.Tensor) -> float:
    correlations = torch.corrcoef(rows.double())
    return float((correlations - torch.eye(len(rows))).abs().max())


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_philox_known_answers(counter: str, key: str, result: str):
    ours = rng.philox4x32([torch.tensor(w) for w in words(counter)], [torch.tensor(w) for w in words(key)])
    assert [int(word) for word in ours] == words(result)


def test_philox_broadcasts():
    counters = torch.tensor([words(counter) for counter, _, _ in KNOWN_ANSWERS])
    keys = torch.tensor([words(key) for _, key, _ in KNOWN_ANSWERS])
    ours = torch.stack(rng.philox4x32(counters.unbind(dim=1), keys.unbind(dim=1)), dim=1)
    assert ours.tolist() == [words(result) for _, _, result in KNOWN_ANSWERS]


def test_place_of_each_key_in_the_counter():
    seed, use, batch, id = 0x299F31D0_A4093822, 3, 0x13198A2E, 0x85A308D3
    ours = rng.random_bits(seed, use, batch, torch.tensor([id]), 8)
    position = torch.arange(2)
    key = [torch.tensor(word) for word in (0xA4093822, 0x299F31D0)]
    expected = rng.philox4x32([position, *(torch.tensor(word) for word in (id, batch, use))], key)
    assert ours[0].tolist() == torch.stack(expected, dim=1).flatten().tolist()
    assert rng.random_bits(0, 0, 0, torch.tensor([0]), 4)[0].tolist() == words(KNOWN_ANSWERS[0][2])


def test_tags_keep_their_numbers():
    tags = ["SIGMA", "NOISE", "LATENT", "AUGMENT", "LABEL_DROP", "DROPOUT", "SAMPLE_NOISE", "SAMPLE_CHURN", "X_FLIP"]
    tags += ["SAMPLE_LABEL"]
    assert [getattr(rng, tag) for tag in tags] == list(range(10))


def test_normals_have_the_moments_of_a_unit_normal():
    z = rng.normal(seed=1, use=rng.NOISE, batch=2, ids=torch.arange(64), shape=(1 << 14,)).double().flatten()
    n = len(z)
    assert abs(z.mean()) <= 5 * n**-0.5
    assert abs(z.std() - 1) <= 5 * (2 * n) ** -0.5
    assert abs(z.pow(3).mean()) <= 5 * (15 / n) ** 0.5
    assert abs(z.pow(4).mean() - 3) <= 5 * (96 / n) ** 0.5


def test_normals_have_the_distribution_of_a_unit_normal():
    z = rng.normal(seed=1, use=rng.SIGMA, batch=2, ids=torch.arange(1 << 16)).double().sort().values
    n = len(z)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    reached = torch.special.ndtr(z)
    kolmogorov = torch.maximum((steps[1:] - reached).max(), (reached - steps[:-1]).max())
    assert kolmogorov <= 1.95 * n**-0.5  # exceeded by 0.1% of all seeds


@pytest.mark.parametrize("varied", ["seed", "use", "batch", "id", "position"])
def test_normals_are_uncorrelated_across(varied: str):
    count, length = 8, 1 << 14
    arguments = dict(seed=5, use=rng.NOISE, batch=9)
    if varied == "id":
        z = rng.normal(**arguments, ids=torch.arange(count), shape=(length,))
    elif varied == "position":
        z = rng.normal(**arguments, ids=torch.arange(length), shape=(count,)).T
    else:
        draws = [{**arguments, varied: value} for value in range(count)]
        z = torch.cat([rng.normal(**draw, ids=torch.tensor([3]), shape=(length,)) for draw in draws])
    assert z.shape == (count, length)
    assert largest_correlation(z) <= 5 * length**-0.5
    assert largest_correlation(z.square()) <= 5 * length**-0.5  # the two of a Box-Muller pair share their radius


@pytest.mark.parametrize("name", DRAWS)
def test_numbers_of_an_id_depend_on_it_alone(name: str):
    draw, shape = DRAWS[name]
    ids = torch.tensor([4, 0, 2**32 - 1, 17, 4, 5])
    together = draw(7, rng.NOISE, 3, ids, shape)
    order = torch.tensor([5, 2, 0, 4, 1, 3])
    assert torch.equal(draw(7, rng.NOISE, 3, ids[order], shape), together[order])
    split = torch.cat([draw(7, rng.NOISE, 3, part, shape) for part in ids.split([1, 3, 2])])
    assert torch.equal(split, together)
    assert torch.equal(together[0], together[4])


@pytest.mark.parametrize("name", DRAWS)
def test_each_key_changes_the_numbers(name: str):
    draw, shape = DRAWS[name]
    keys = [
        (0, 1, 0, 0),
        (1, 1, 0, 0),
        (1 << 32, 1, 0, 0),
        (1 << 62, 1, 0, 0),
        (0, 0, 0, 0),
        (0, 1, 1, 0),
        (0, 1, 2**32 - 1, 0),
        (0, 1, 0, 1),
        (0, 1, 0, 1 << 31),
    ]
    drawn = [draw(seed, use, batch, torch.tensor([id]), shape).flatten().tolist() for seed, use, batch, id in keys]
    flat = [value for row in drawn for value in row]
    assert len(set(flat)) == len(flat)


def test_seeds_that_differ_in_high_bits_differ_in_a_tensor_of_seeds():
    seeds = torch.tensor([7, 7 + (1 << 32), 7 + (1 << 61), 7])
    ids = torch.zeros_like(seeds)
    z = rng.normal(seeds, rng.SAMPLE_NOISE, 0, ids, (5,))
    assert len(set(z[:3].flatten().tolist())) == 15
    assert torch.equal(z[0], z[3])
    for seed, row in zip(seeds.tolist(), z, strict=True):
        assert torch.equal(rng.normal(seed, rng.SAMPLE_NOISE, 0, torch.tensor([0]), (5,))[0], row)


@pytest.mark.parametrize("name", DRAWS)
def test_prefix_of_a_longer_draw_is_the_shorter_one(name: str):
    draw, _ = DRAWS[name]
    ids = torch.arange(3)
    sizes = [1, 2, 3, 4, 5, 7, 8, 9, 33]
    whole = draw(7, rng.NOISE, 3, ids, 40 if name == "bits" else (40,))
    for size in sizes:
        assert torch.equal(draw(7, rng.NOISE, 3, ids, size if name == "bits" else (size,)), whole[:, :size])


def test_shapes_and_dtypes():
    ids = torch.arange(3)
    assert rng.random_bits(0, 0, 0, ids, 5).dtype == torch.int64
    for draw in (rng.uniform, rng.normal):
        assert draw(0, 0, 0, ids).shape == (3,)
        values = draw(0, 0, 0, ids, (2, 5, 1))
        assert values.shape == (3, 2, 5, 1)
        assert values.dtype == torch.float32
        assert torch.equal(values.flatten(1), draw(0, 0, 0, ids, (10,)))


def test_uniform_fills_its_range_evenly():
    u = rng.uniform(3, rng.LABEL_DROP, 0, torch.arange(1 << 16)).double()
    n = len(u)
    assert u.min() > 0
    assert u.max() <= 1
    assert abs(u.mean() - 0.5) <= 5 * (12 * n) ** -0.5
    counts = torch.histc(u, bins=64, min=0, max=1)
    chi_squared = ((counts - n / 64).square() / (n / 64)).sum()
    assert abs(chi_squared - 63) <= 5 * (2 * 63) ** 0.5


def test_extreme_bits_stay_in_range(monkeypatch: pytest.MonkeyPatch):
    extremes = torch.tensor([0, 0, 0, 2**32 - 1, 2**32 - 1, 0, 2**32 - 1, 2**32 - 1])
    monkeypatch.setattr(rng, "random_bits", lambda seed, use, batch, ids, count: extremes.expand(len(ids), count))
    u = rng.uniform(0, 0, 0, torch.arange(2), (8,))
    assert u.min() > 0
    assert u.max() <= 1
    assert rng.normal(0, 0, 0, torch.arange(2), (8,)).isfinite().all()


def test_batch_number_beyond_32_bits_is_refused():
    with pytest.raises(AssertionError):
        rng.random_bits(0, 0, 2**32, torch.tensor([0]), 1)
