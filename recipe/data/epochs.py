"""Which samples an epoch shows: each once, or each class equally often."""

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


def occurrences(ids: Integers) -> Integers:
    """For each element of `ids` how often the same number stands before it."""
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    first = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))
    lengths = np.diff(first, append=len(ids))
    found = np.empty_like(ids)
    found[order] = np.arange(len(ids)) - np.repeat(first, lengths)
    return found


def balanced_draws(
    labels: Integers, samples_per_shard: Integers, total: int, rng: np.random.Generator
) -> tuple[Integers, Integers]:
    """An epoch that draws each class equally often, and each image of a class equally often, up to one draw.

    Args:
        labels: class of each sample [N]; a class without images is not drawn.
        samples_per_shard: sizes of the shards, which hold the samples in order.
        total: how many draws.
        rng: decides which classes and which images of each are drawn once more than others.

    Returns:
        (units, ids) as `StreamingDataset.resample_streams` returns them: sample numbers [total], in rounds that draw no
        sample twice and go through the shards in order, and the lengths of the parts of them that lie in one shard.
    """
    _, class_of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    wanted = np.full(len(counts), total // len(counts))
    wanted[rng.permutation(len(counts))[: total % len(counts)]] += 1
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(class_of[shuffled], kind="stable")]  # the images of each class, shuffled
    place_in_class = np.arange(len(labels)) - np.repeat(counts.cumsum() - counts, counts)
    classes = class_of[by_class]
    times = np.empty(len(labels), np.int64)
    times[by_class] = wanted[classes] // counts[classes] + (place_in_class < wanted[classes] % counts[classes])
    ids = np.repeat(np.arange(len(labels)), times)
    rounds = occurrences(ids)
    order = np.lexsort((ids, rounds))
    ids, rounds = ids[order], rounds[order]
    shards = np.searchsorted(samples_per_shard.cumsum(), ids, side="right")
    starts = np.flatnonzero(np.diff(rounds, prepend=-1) | np.diff(shards, prepend=-1))
    return np.diff(starts, append=total), ids
