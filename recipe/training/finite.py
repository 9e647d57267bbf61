"""Nothing that is not finite is stored: weights, averages and moments are looked at before each snapshot or checkpoint.

A NaN spreads within a step to all weights, and from then on to everything stored, so that a run which stores it cannot
go on: whatever the learning rate, it would end in the same message again.
"""

import math
from collections.abc import Iterable, Iterator

import torch
from composer.core import State
from composer.utils import dist
from torch import Tensor

from recipe.command_line import UserError
from recipe.edm2.sharded_tensors import local
from recipe.training.folder import RunFolder
from recipe.training.model import unwrap
from recipe.weights.checkpoints import list_checkpoints, newest_whole

LARGEST = torch.finfo(torch.float16).max  # that a snapshot can hold; weights are of unit magnitude


class NotFiniteError(UserError):
    """A run whose weights are NaN, infinite or as good as that; the message says from where it can go on."""


def check_finite(state: State, folder: RunFolder) -> None:
    """Look at all that a checkpoint holds, on all ranks: each at what it holds, at the cost of one synchronisation.

    Raises:
        NotFiniteError: on every rank, if there is something on any of them that must not be stored.
    """
    model = unwrap(state.model)
    networks = {"weights": model.net} | {f"average {length:g}": ema for length, ema in model.averages()}
    bad = [name for name, net in networks.items() if not within(net.parameters(), LARGEST)]
    if not within(_moments(state), math.inf):
        bad.append("moments of Adam")
    found = list(dict.fromkeys(name for names in dist.all_gather_object(bad) for name in names))
    if found:
        raise NotFiniteError(
            f"batch {state.timestamp.batch.value}: {', '.join(found)} not finite, or beyond {LARGEST:g}; nothing of it "
            f"is stored. {way_back(folder, state.timestamp.batch.value)}"
        )


def within(tensors: Iterable[Tensor], limit: float) -> bool:
    """Whether each element that this rank holds is a number of at most `limit`, and finite."""
    own = [part for tensor in tensors if (part := local(tensor.detach())).numel() > 0]
    if not own:
        return True
    largest = torch.stack([norm.float() for norm in torch._foreach_norm(own, math.inf)])  # pyright: ignore[reportPrivateImportUsage]
    return bool((largest.isfinite() & (largest <= limit)).all())


def _moments(state: State) -> Iterator[Tensor]:
    for optimizer in state.optimizers:
        for values in optimizer.state.values():
            yield from (value for name, value in values.items() if name != "step" and isinstance(value, Tensor))


def way_back(folder: RunFolder, batch: int) -> str:
    """What to do about weights that are not finite after so many batches: which checkpoint is good, and what to change.

    One of this very batch is not counted: if a loss is NaN, it is so with the weights that it holds.
    """
    folder.uploads.drain()  # the newest checkpoint may be under way
    place = folder.place.child("checkpoints")
    newest = newest_whole(place)
    earlier = [each for each in list_checkpoints(place) if newest and each.batch < newest.batch]
    change = (
        "lower optimizer.ref_lr, with allow_changes=[optimizer.ref_lr], or use model.dtype=float32, with "
        "allow_changes=[model.dtype]"
    )
    if newest is None:
        return f"There is no checkpoint yet: {change}, and start again"
    if newest.batch < batch:
        return f"The last good checkpoint is checkpoints/{newest.name}, from which the same command goes on: {change}"
    before = f", delete it there to go on from {earlier[-1].name}" if earlier else ""
    return (
        f"The last checkpoint, {place.describe(newest.name)}, is from just before: {change}, and start again; if that "
        f"ends alike{before or ', choose another run_name'}"
    )


def refuse_checkpoint(folder: RunFolder, name: str, tensors: Iterable[Tensor]) -> None:
    """Raises NotFiniteError on every rank if a checkpoint that was read holds something that is not finite."""
    if all(dist.all_gather_object(within(tensors, math.inf))):
        return
    place = folder.place.child("checkpoints")
    others = [each.name for each in list_checkpoints(place) if each.name != name]
    back = f"to go on from {others[-1]}" if others else "and begin anew under another run_name"
    raise NotFiniteError(
        f"{place.describe(name)}: holds weights, averages or moments that are not finite; delete it {back}, with a "
        "lower optimizer.ref_lr"
    )
