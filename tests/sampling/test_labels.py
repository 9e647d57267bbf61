"""Classes of seeds: by id, by name, balanced, at random, none."""

from collections import Counter
from itertools import pairwise

import pytest

from recipe.sampling.labels import labels_for
from recipe.sampling.networks import SampleError

NAMES = ["cat", "tench, Tinca tinca", "3", "2nd", "snow leopard"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (None, [0, 1, 2, 3, 4, 0]),
        ("balanced", [0, 1, 2, 3, 4, 0]),
        ("none", [-1] * 6),
        ("1,3-4", [1, 3, 4] * 2),
        ("snow leopard", [4] * 6),
        ("tench, Tinca tinca", [1] * 6),
        ("cat, 2nd,4", [0, 3, 4] * 2),
        ("2-3", [2, 3] * 3),
    ],
)
def test_lists(wanted: str | None, expected: list[int]):
    assert labels_for(range(6), wanted, 5, NAMES) == expected


def test_a_number_is_an_id():
    assert labels_for([0], "4,3", 5, NAMES) == [4]
    assert labels_for([1], "4,3", 5, NAMES) == [3]


def test_labels_follow_the_seed_not_its_place():
    assert labels_for([7, 2**62 + 1], "balanced", 5) == [2, (2**62 + 1) % 5]


def test_random_classes_are_a_function_of_the_seed():
    whole = labels_for(range(20_000), "random", 7)
    assert labels_for([19_000, 5], "random", 7) == [whole[19_000], whole[5]]
    counts = Counter(whole)
    assert set(counts) == set(range(7))
    assert sum((count - 20_000 / 7) ** 2 / (20_000 / 7) for count in counts.values()) < 30  # chi2 with 6, p < 1e-4
    pairs = Counter(pairwise(whole))
    assert len(pairs) == 49 and max(pairs.values()) < 1.3 * 20_000 / 49


@pytest.mark.parametrize(
    ("wanted", "label_dim", "names", "said"),
    [
        ("5", 5, NAMES, "--labels 5: the network knows the classes 0 to 4"),
        ("cta", 5, NAMES, "--labels cta: no class is called 'cta'; did you mean cat?"),
        ("zebra", 5, NAMES, "no class is called 'zebra'; the classes are called cat, tench, Tinca tinca, 3 and so on"),
        ("cat", 5, None, "does not say how its classes are called; name 'cat' by its id"),
        ("3-1", 5, NAMES, "'3-1' is a range that falls; write 1-3; or none"),
        ("random", 0, None, "--labels random: the network is unconditional; leave --labels out"),
        ("1,,2", 5, NAMES, "no class is called ''"),
    ],
)
def test_refused(wanted: str, label_dim: int, names: list[str] | None, said: str):
    with pytest.raises(SampleError) as caught:
        labels_for(range(3), wanted, label_dim, names)
    assert said in str(caught.value)


def test_unconditional_networks():
    assert labels_for(range(2), None, 0) == labels_for(range(2), "none", 0) == [-1, -1]
