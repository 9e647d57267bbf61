"""Which class each seed draws: by id, by name, all in turn, at random, or none."""

import difflib
import re
from collections.abc import Sequence

import torch

from recipe.command_line import parse_integers
from recipe.edm2 import rng
from recipe.sampling.networks import SampleError

NONE, BALANCED, RANDOM = "none", "balanced", "random"
_IDS = re.compile(r"\d+\s*(-\s*\d+)?")


def labels_for(
    seeds: Sequence[int], wanted: str | None, label_dim: int, names: Sequence[str] | None = None
) -> list[int]:
    """The class of each seed, a function of the seed and `wanted` alone; -1 = unconditional.

    Args:
        seeds: of the images.
        wanted: ids and names such as `0-4,cat`, the seed-th of which is taken, cyclically; "balanced" or None = of all
            classes; "random" = any with equal probability, drawn anew for each seed; "none" = unconditional.
        label_dim: number of classes of the network; 0 = none.
        names: of the classes by id; None = not known.

    Raises:
        SampleError: a class that the network does not know.
    """
    if label_dim == 0:
        if wanted not in (None, NONE):
            raise SampleError(f"--labels {wanted}: the network is unconditional; leave --labels out")
        return [-1] * len(seeds)
    if wanted == NONE:
        return [-1] * len(seeds)
    if wanted == RANDOM:
        return _random(seeds, label_dim)
    classes = list(range(label_dim)) if wanted in (None, BALANCED) else _classes(wanted, label_dim, names or ())
    return [classes[seed % len(classes)] for seed in seeds]


def _random(seeds: Sequence[int], label_dim: int) -> list[int]:
    keys = torch.tensor(seeds, dtype=torch.int64)
    bits = rng.random_bits(keys, rng.SAMPLE_LABEL, 0, torch.zeros_like(keys), 1)
    return ((bits[:, 0] * label_dim) >> 32).tolist()


def _classes(wanted: str, label_dim: int, names: Sequence[str]) -> list[int]:
    """The ids in a list of ids, ranges and names. A number is an id even if a class has it as its name."""
    if wanted in names:
        return [names.index(wanted)]  # also one with a comma in it
    found: list[int] = []
    for part in (part.strip() for part in wanted.split(",")):
        if part in names and not _IDS.fullmatch(part):
            found.append(names.index(part))
            continue
        if not part[:1].isdecimal():
            raise SampleError(f"--labels {wanted}: {_unknown(part, names)}")
        try:
            found += parse_integers(part)
        except ValueError as error:
            raise SampleError(f"--labels {wanted}: {error}; or none") from None
    if max(found) >= label_dim:
        raise SampleError(f"--labels {wanted}: the network knows the classes 0 to {label_dim - 1}")
    return found


def _unknown(name: str, names: Sequence[str]) -> str:
    if not names:
        return f"the snapshot does not say how its classes are called; name {name!r} by its id"
    close = difflib.get_close_matches(name, names, n=1)
    fix = f"did you mean {close[0]}?" if close else f"the classes are called {', '.join(names[:3])} and so on"
    return f"no class is called {name!r}; {fix}"
