"""Judges pictures against a reference: all metrics from one pass of features, on any number of ranks.

    features = find_network("inception", device)
    reference = open_reference("s3://bucket/img64.safetensors")
    judge = Judge(reference, features, ["fd", "kid"])             # refuses what does not fit together
    values = judge_network(judge, Drawer(net, settings), wanted, ranks, batch_size=64)
    values["fd"], values["kid"], values["kid_std"]

The values are the same on all ranks. `judge(pictures, ranks)` does the same for pictures that are there.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from recipe.evaluation.feature_set import FeatureSet
from recipe.evaluation.features import FeatureNetwork
from recipe.evaluation.measuring import EVERY, Keep, Numbered, Tally, measure
from recipe.evaluation.metrics import check_enough, chosen, values_of
from recipe.evaluation.reference import Reference
from recipe.ranks import Ranks
from recipe.sampling.distributed import Drawer, Wanted, draw, rows_of, share


def keep_for(metrics: Sequence[str]) -> Keep:
    """What must be kept of each picture for metrics of these names."""
    found = chosen(metrics)
    features = EVERY if any(metric.keeps_features for metric in found) else ()
    return Keep(features, any(metric.keeps_logits for metric in found))


@dataclass(frozen=True)
class Judge:
    """Measures pictures against a reference.

    Attributes:
        reference: statistics of data.
        features: the network that they are of.
        metrics: names such as "fd" and "kid".

    Raises:
        EvaluationError: they do not fit together, or the reference is of too few pictures.
    """

    reference: Reference
    features: FeatureNetwork
    metrics: Sequence[str]

    def __post_init__(self) -> None:
        self.reference.check(self.features, self.metrics)

    @property
    def keep(self) -> Keep:
        """What the metrics need of each picture."""
        return keep_for(self.metrics)

    def tally(self) -> Tally:
        """Takes pictures and their numbers, one by one; `values` makes metrics of it."""
        return Tally(self.features, self.keep, self.reference.about.resolution)

    def __call__(self, pictures: Iterable[Numbered], ranks: Ranks) -> Mapping[str, float]:
        """The metrics of this rank's share of numbered pictures and the other ranks' together, on all ranks.

        Raises:
            EvaluationError: pictures of another size than the reference's, or too few.
        """
        found = measure(self.features, pictures, ranks, self.keep, self.reference.about.resolution)
        return self.values(found, ranks)

    def values(self, found: FeatureSet | None, ranks: Ranks) -> Mapping[str, float]:
        """The metrics of features that are known to rank 0 (None on the others), on all ranks."""
        computed = {}
        if found is not None:
            computed = dict(values_of(self.metrics, found, self.reference.found, self.features.device))
        return json.loads(ranks.announce(json.dumps(computed)))


def judge_network(
    judge: Judge,
    drawer: Drawer,
    wanted: Sequence[Wanted],
    ranks: Ranks,
    batch_size: int,
    advance: Callable[[int], object] = lambda count: None,
) -> Mapping[str, float]:
    """The metrics of what a network draws, on all ranks; no picture is stored.

    Args:
        judge: what it is measured by.
        drawer: draws.
        wanted: the images, of which each rank draws its share; no seed twice.
        ranks: of this launch; on all of them the call is the same.
        batch_size: images in memory at once on each rank.
        advance: called now and then with how many more of this rank's images are done.

    Raises:
        EvaluationError: fewer images than a metric needs, or of another size than the reference's.
    """
    check_enough(judge.metrics, len(wanted), "to be drawn are")
    tally = judge.tally()
    mine = share(wanted, rows_of(drawer.device), ranks.rank, ranks.size)
    for count in draw(drawer, mine, lambda each, picture: tally.add(each.seed, picture), batch_size):
        advance(count)
    return judge.values(tally.finish(ranks), ranks)
