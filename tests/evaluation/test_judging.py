"""A judge's values do not depend on ranks and batches, are those of the features in one piece, and order pictures."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest
import torch
from torch import Tensor
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]

from helpers.small_snapshots import small_network
from recipe.edm2.samplers.generate import SamplerSettings
from recipe.evaluation.distances import frechet_distance
from recipe.evaluation.feature_set import EvaluationError
from recipe.evaluation.features import FeatureNetwork, by_import_path
from recipe.evaluation.judging import Judge, judge_network
from recipe.evaluation.measuring import EVERY, Keep, Numbered, measure
from recipe.evaluation.reference import About, Reference
from recipe.ranks import Ranks
from recipe.sampling.distributed import Drawer, Wanted, draw, share

T = TypeVar("T")
CPU = torch.device("cpu")
METRICS = ["fd", "pr", "dc"]


def pictures(count: int, seed: int = 0, noise: float = 0.0) -> Tensor:
    """Smooth pictures uint8 [N, 3, 8, 8] with noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 3, 3, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=8, mode="bilinear")
    return ((smooth + noise * torch.rand(count, 3, 8, 8, generator=generator)) * 127).to(torch.uint8)


def numbered(images: Tensor, numbers: Sequence[int], batch: int) -> list[Numbered]:
    return [(part.tolist(), images[part]) for part in torch.tensor(numbers, dtype=torch.int64).split(batch)]


@pytest.fixture(scope="module")
def network() -> FeatureNetwork:
    return by_import_path("helpers.feature_networks:pixels", CPU)


@pytest.fixture(scope="module")
def judge(network: FeatureNetwork) -> Judge:
    found = measure(network, numbered(pictures(150), range(150), 64), Ranks(), Keep(EVERY))
    assert found is not None
    about = About(network.name, network.digest, 8)
    return Judge(Reference("ref", about, found), network, METRICS)


def on_ranks(size: int, work: Callable[[Ranks], T]) -> list[T]:
    """What `work(ranks)` gives on each rank; they share a store as those of a launch do."""
    store = HashStore()
    ranks = [Ranks(rank, size, size, store) for rank in range(size)]
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, ranks))


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_ranks_and_batches_change_nothing(judge: Judge, size: int, batch: int):
    """Shares of any kind and in any order: within 1e-10 of all at once."""
    images = pictures(100, 1, 0.3)
    (expected,) = on_ranks(1, lambda ranks: judge(numbered(images, range(100), 100), ranks))
    shares = torch.randperm(100, generator=torch.Generator().manual_seed(batch)).tensor_split(torch.tensor([3, 50, 90]))
    parts = [torch.cat(shares[rank::size]).tolist() for rank in range(size)]
    found = on_ranks(size, lambda ranks: judge(numbered(images, parts[ranks.rank], batch), ranks))
    assert len(found) == size and expected["fd"] > 0.01
    for values in found:
        assert values == pytest.approx(expected, rel=1e-10, abs=0)


def test_a_rank_may_have_nothing(judge: Judge):
    images = pictures(40, 1)
    parts = [[], list(range(40))]
    found = on_ranks(2, lambda ranks: judge(numbered(images, parts[ranks.rank], 16), ranks))
    assert found[0] == found[1] == pytest.approx(judge(numbered(images, range(40), 16), Ranks()), rel=1e-10)


def test_it_is_the_distance_of_the_features(judge: Judge, network: FeatureNetwork):
    images = pictures(60, 2, 0.5)
    expected = frechet_distance(network(images)[0], network(pictures(150))[0])
    assert judge(numbered(images, range(60), 60), Ranks())["fd"] == pytest.approx(expected, rel=1e-6)


def test_features_are_in_the_order_of_the_numbers(network: FeatureNetwork):
    images = pictures(50)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0)).tolist()
    found = measure(network, numbered(images, order, 9), Ranks(), Keep(EVERY))
    assert found is not None and found.features is not None
    torch.testing.assert_close(found.features, network(images)[0], rtol=1e-5, atol=1e-6)


def test_each_picture_is_in_its_own_row_of_a_full_call():
    """So that kernels, which round by shape and place, give it the same bits whatever is computed beside it."""
    shapes = []

    def rows(given: Tensor) -> tuple[Tensor, None]:
        shapes.append(len(given))
        return torch.stack([torch.arange(len(given)), torch.zeros(len(given))], dim=1), None

    numbers = [40, 3, 19, 7, 16, 1000, 35, *range(50, 70)]
    probe = FeatureNetwork("own:rows", "", CPU, rows)
    found = measure(probe, numbered(pictures(1001), numbers, 4), Ranks(), Keep(EVERY))
    assert found is not None and found.features is not None and set(shapes) == {16}
    assert found.features[:, 0].tolist() == [number % 16 for number in sorted(numbers)]


def test_a_network_is_judged_without_storing(judge: Judge, network: FeatureNetwork):
    """By the same seeds on any number of ranks, as its pictures are."""
    drawer = Drawer(small_network(1, img_channels=3), SamplerSettings(num_steps=2))
    wanted = [Wanted(seed, seed % 10) for seed in range(5, 45)]
    kept: dict[int, Tensor] = {}
    for _ in draw(drawer, wanted, lambda each, picture: kept.__setitem__(each.seed, picture), 64):
        pass
    expected = judge(((list(kept), torch.stack(list(kept.values()))),), Ranks())
    for size in 1, 2:
        for values in on_ranks(size, lambda ranks: judge_network(judge, drawer, wanted, ranks, 32)):
            assert values == pytest.approx(expected, rel=1e-10)
    assert sum(len(share(wanted, 16, rank, 2)) > 0 for rank in range(2)) == 2  # both had something to do


def test_what_does_not_fit_is_refused(judge: Judge, network: FeatureNetwork):
    small = numbered(pictures(10)[:, :, :4, :4], range(10), 5)
    with pytest.raises(EvaluationError, match="a picture of 4x4 pixels where 8x8 are wanted"):
        judge(small, Ranks())
    with pytest.raises(EvaluationError, match="--metrics dc: needs at least 6 pictures, but the set has 5"):
        judge(numbered(pictures(5), range(5), 5), Ranks())
    with pytest.raises(
        EvaluationError, match=r"--metrics kid: needs at least 1000 .* but ref keeps the features of 150"
    ):
        Judge(judge.reference, network, ["kid"])
    with pytest.raises(EvaluationError, match="--metrics is: needs a classifier, which helpers"):
        Judge(judge.reference, network, ["is"])
    with pytest.raises(EvaluationError, match="--metrics fid: must be among fd, kid, pr, dc, is"):
        Judge(judge.reference, network, ["fid"])
    moments = Reference("ref", About(network.name), measured(judge))
    with pytest.raises(EvaluationError, match="--metrics pr: needs the features themselves, which ref does not hold"):
        Judge(moments, network, ["fd", "pr"])
    for about, said in (
        (About("inception", network.digest), "statistics of the features inception, not helpers"),
        (About(network.name, "0" * 64), "was made with other weights"),
    ):
        with pytest.raises(EvaluationError, match=said):
            Judge(Reference("ref", about, judge.reference.found), network, ["fd"])


def measured(judge: Judge):
    found = judge.reference.found
    return type(found)(found.count, found.mean, found.covariance)


def test_features_of_some_are_kept(network: FeatureNetwork):
    images, kept = pictures(50), range(3, 50, 10)
    parts = [range(0, 20), range(20, 50)]
    alone = measure(network, numbered(images, range(50), 9), Ranks(), Keep(kept))
    both = on_ranks(2, lambda ranks: measure(network, numbered(images, parts[ranks.rank], 9), ranks, Keep(kept)))
    assert both[1] is None
    for found in alone, both[0]:
        assert found is not None and found.features is not None
        torch.testing.assert_close(found.features, network(images[3::10])[0], rtol=1e-5, atol=1e-6)
