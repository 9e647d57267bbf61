"""Whatever is random is independent of everything else that is random: uses, batches, seeds and examples.

Independence is judged by chi-square tests of contingency tables. All numbers are fixed by their seeds, so nothing is
flaky; each bound would be exceeded by chance once in a million tables.
"""

import functools
from collections.abc import Iterator
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from scipy.stats import chi2
from torch.utils.data import Dataset

from helpers.small_snapshots import NETWORK
from helpers.step_inputs import Tensors, inputs_algorithm, step_inputs
from helpers.training import Examples, fit
from recipe.edm2 import rng
from recipe.edm2.augment import Augmentation
from recipe.edm2.latents import Whitening
from recipe.edm2.networks.precond import Precond
from recipe.training.model import DiffusionModel

USES = ["SIGMA", "NOISE", "LATENT", "AUGMENT", "LABEL_DROP", "DROPOUT", "SAMPLE_NOISE", "SAMPLE_CHURN", "X_FLIP"]
USES += ["SAMPLE_LABEL"]
COUNT = 4096  # examples per table
UNLIKELY = 1e-6
BINS = 8
OFTEN = Augmentation(p=0.5, x_flip=1, y_flip=1, scale=1, rotation=1, anisotropy=1, translation=1)
CONDITIONS = {"x-flip": 0, "y-flip": 1, "scale": 2, "rotation": 4, "anisotropy": 5, "translation": 7}


def bins(values: torch.Tensor) -> np.ndarray:
    """Numbers 0 to 7: the value itself if there are few different ones, else in which eighth of all values it lies."""
    values = values.float().contiguous()
    if len(values.unique()) > BINS:
        values = torch.bucketize(values, torch.quantile(values, torch.linspace(0, 1, BINS + 1)[1:-1]))
    return torch.unique(values, return_inverse=True)[1].numpy()


def chance_of(a: np.ndarray, b: np.ndarray) -> float:
    """How likely independent variables would be to depend on each other as much as `a` and `b` seem to."""
    table = np.bincount(a * (b.max() + 1) + b, minlength=(a.max() + 1) * (b.max() + 1)).reshape(a.max() + 1, -1)
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    assert freedom > 0, "one of them is constant"
    return float(chi2.sf(((table - expected) ** 2 / expected).sum(), freedom))


def inputs(kind: str, batch_number: int = 3, seed: int = 5, first: int = 0) -> dict[str, np.ndarray]:
    """Everything random about the examples `first` to `first + COUNT`, by what it is for, in bins."""
    ids = torch.arange(first, first + COUNT)
    batch: Tensors = {"id": ids, "label": torch.zeros(COUNT, dtype=torch.int64)}
    settings: dict[str, Any] = {"label_dropout": 0.3}
    if kind == "latents":
        batch |= {"mean": torch.zeros(COUNT, 2, 1, 2), "std": torch.ones(COUNT, 2, 1, 2)}
        settings["whitening"] = Whitening((0.0, 0.0), (1.0, 1.0))
    else:
        image = torch.tensor([0, 85, 170, 255], dtype=torch.uint8).expand(1, 4, 4)
        batch["image"] = image.expand(COUNT, 1, 4, 4).contiguous()
        settings |= {"augmentation": OFTEN} if kind == "augmented" else {"x_flip": True}
    drawn = step_inputs(batch, batch_number, seed, **settings)
    assert drawn["label"].unique().tolist() == [-1, 0]
    found = {"sigma": drawn["sigma"], "label drop": drawn["label"]}
    found |= {f"noise {place}": drawn["noise"].flatten(1)[:, place] for place in range(4)}
    if kind == "latents":
        found |= {f"latent {place}": drawn["image"].flatten(1)[:, place] for place in range(4)}
    elif kind == "augmented":
        found |= {name: drawn["augment"][:, column] for name, column in CONDITIONS.items()}
    else:
        found["mirrored"] = drawn["image"][:, 0, 0, 0] > drawn["image"][:, 0, 0, 3]
    return {name: bins(values) for name, values in found.items()}


KINDS = ["mirrored", "augmented", "latents"]


@pytest.mark.parametrize("kind", KINDS)
def test_uses_are_independent(kind: str):
    """Which labels drop does not depend on sigma, nor sigma on the noise, nor the noise on the augmentation."""
    found = inputs(kind)
    chances = {pair: chance_of(found[pair[0]], found[pair[1]]) for pair in combinations(found, 2)}
    assert len(chances) == len(found) * (len(found) - 1) // 2 and len(found) >= 7
    assert {pair: chance for pair, chance in chances.items() if chance < UNLIKELY} == {}


@pytest.mark.parametrize("other", ["next batch", "far batch", "other seed", "next example"])
@pytest.mark.parametrize("kind", KINDS)
def test_inputs_say_nothing_about_others(kind: str, other: str):
    """An example's inputs against all of its next batch's, of another seed's, and of its neighbour's."""
    changes: dict[str, dict[str, int]] = {
        "next batch": {"batch_number": 4},
        "far batch": {"batch_number": 1_048_575},
        "other seed": {"seed": 6},
        "next example": {"first": 1},
    }
    here, there = inputs(kind), inputs(kind, **changes[other])
    chances = {pair: chance_of(here[pair[0]], there[pair[1]]) for pair in product(here, there)}
    assert {pair: chance for pair, chance in chances.items() if chance < UNLIKELY} == {}


def test_dependence_would_be_noticed():
    """The tests above can fail: they do for labels dropped by the stream of sigma, or by that of another image's."""
    found = inputs("mirrored")
    dropped = rng.uniform(5, rng.SIGMA, 3, torch.arange(COUNT)) <= 0.3
    assert chance_of(bins(dropped), found["sigma"]) < UNLIKELY
    assert chance_of(found["noise 0"], found["noise 0"]) < UNLIKELY
    shifted = rng.uniform(5, rng.LABEL_DROP, 3, torch.arange(1, COUNT + 1)) <= 0.3
    assert chance_of(bins(shifted), inputs("mirrored", first=1)["label drop"]) < UNLIKELY


def test_tags_are_independent():
    """Also those of sampling and dropout, that no example sees, at the same batch and at neighbouring ones."""
    ids = torch.arange(COUNT)
    streams = {
        (use, batch, seed): bins(rng.uniform(seed, getattr(rng, use), batch, ids))
        for use, (batch, seed) in product(USES, [(0, 0), (1, 0), (2, 0), (0, 1)])
    }
    chances = {pair: chance_of(streams[pair[0]], streams[pair[1]]) for pair in combinations(streams, 2)}
    assert len(chances) == 40 * 39 // 2
    assert {pair: chance for pair, chance in chances.items() if chance < UNLIKELY} == {}


def test_no_words_are_drawn_twice():
    """No key is a sum or mixture of others: whatever differs by one, in use, seed, batch or id, differs altogether."""
    ids = torch.arange(8)
    words = torch.cat(
        [
            rng.random_bits(seed, getattr(rng, use), batch, ids, 16).flatten()
            for use, seed, batch in product(USES, (0, 1, 2, 1 << 32), range(8))
        ]
    )
    pairs = words[::2] << 31 ^ words[1::2]
    assert len(pairs) == 10 * 4 * 8 * 8 * 8
    assert len(pairs.unique()) == len(pairs)


def test_shares_and_moments():
    """What the settings ask for is what the streams give, in each batch."""
    n = 1 << 14
    batch = {
        "id": torch.arange(n),
        "label": torch.zeros(n, dtype=torch.int64),
        "image": torch.zeros(n, 1, 1, 4).byte(),
    }
    for number in (0, 1, 70_000):
        drawn = step_inputs(batch, number, 9, P_mean=-0.8, P_std=1.6, label_dropout=0.2)
        logarithms = drawn["sigma"].double().log()
        assert abs(logarithms.mean() + 0.8) < 5 * 1.6 * n**-0.5
        assert abs(logarithms.std() - 1.6) < 5 * 1.6 * (2 * n) ** -0.5
        assert abs((drawn["label"] == -1).double().mean() - 0.2) < 5 * 0.4 * n**-0.5
        assert abs(drawn["noise"].double().mean()) < 5 * (4 * n) ** -0.5
        assert abs(drawn["noise"].double().std() - 1) < 5 * (8 * n) ** -0.5


# Through a Trainer, which alone knows the number of the batch


class Latents(Dataset):
    """Like `Examples`, but of latents that are all alike."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> Tensors:
        ones = torch.ones(1, 8, 8)
        return {"mean": 0 * ones, "std": ones, "label": torch.tensor(index % 10), "id": torch.tensor(index)}


class Seen(Callback):
    """Notes what the model is given, by batch."""

    def __init__(self):
        self.batches: list[Tensors] = []

    def after_forward(self, state: State, logger: Logger) -> None:
        self.batches.append({name: tensor.clone() for name, tensor in state.batch.items()})


@functools.cache
def seen_in_training(kind: str) -> list[Tensors]:
    """What 8 steps of 16 train on, of 32 examples: each pair of steps sees all of them, in the same order."""
    torch.manual_seed(3)
    settings: dict[str, Any] = {"label_dropout": 0.3}
    if kind == "latents":
        examples: Any = Latents()
        settings["whitening"] = Whitening((0.0,), (1.0,))
    else:
        examples = Examples(torch.randint(0, 256, (32, 1, 8, 8), dtype=torch.uint8), torch.arange(32) % 10)
        settings |= {"augmentation": OFTEN} if kind == "augmented" else {"x_flip": True}
    model = DiffusionModel(Precond(**NETWORK, augment_dim=9 if kind == "augmented" else 0), [0.05])
    seen = Seen()
    fit(model, examples, [inputs_algorithm(5, **settings)], 16, 8, callbacks=(seen,))
    return seen.batches


def pairs_of_equal_examples(batches: list[Tensors]) -> Iterator[tuple[Tensors, Tensors]]:
    for one, other in combinations(range(len(batches)), 2):
        if (one - other) % 2 == 0:
            assert torch.equal(batches[one]["id"], batches[other]["id"])
            yield batches[one], batches[other]


@pytest.mark.parametrize("kind", KINDS)
def test_examples_seen_again_are_drawn_anew(kind: str):
    batches = seen_in_training(kind)
    assert len(batches) == 8
    for one, other in pairs_of_equal_examples(batches):
        assert not torch.isclose(one["sigma"], other["sigma"], rtol=1e-6).any()
        assert abs(torch.corrcoef(torch.stack([one["noise"].flatten(), other["noise"].flatten()]))[0, 1]) < 5 / 32
        assert not torch.equal(one["label"] == -1, other["label"] == -1)
        if kind == "latents":
            assert not torch.isclose(one["image"], other["image"], rtol=1e-6).any()
        elif kind == "augmented":
            assert not torch.equal(one["augment"], other["augment"])
        else:
            same = (one["image"] == other["image"]).flatten(1).all(dim=1)
            assert 0 < int(same.sum()) < 16


@pytest.mark.parametrize("kind", KINDS)
def test_number_and_seed_of_the_batch_are_those_of_the_run(kind: str):
    for number, batch in enumerate(seen_in_training(kind)):
        ids = batch["id"]
        assert torch.allclose(batch["sigma"].log(), rng.normal(5, rng.SIGMA, number, ids) - 0.4, atol=1e-5)
        assert torch.equal(batch["noise"], rng.normal(5, rng.NOISE, number, ids, (1, 8, 8)))
        assert torch.equal(batch["label"] == -1, rng.uniform(5, rng.LABEL_DROP, number, ids) <= 0.3)
        if kind == "latents":
            assert torch.allclose(batch["image"], 0.5 * rng.normal(5, rng.LATENT, number, ids, (1, 8, 8)))
