"""Starts a run from trained weights: of a snapshot, or of the newest checkpoint of a run. Only weights are taken.

Rules where the networks differ:
- another `label_dim`: the class embedding is drawn anew;
- augmentation in only one of them: its embedding is drawn anew or left out;
- another `img_resolution`: blocks correspond level by level, from the highest resolution down; attention layers that
  only one of the networks has are drawn anew or left out;
- any other difference in names or shapes is an error.
"""

import contextlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from composer.utils import dist
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from recipe.command_line import UserError, say
from recipe.configuration.schema import Config
from recipe.data.facts import DataFacts
from recipe.data.meaning import differences
from recipe.edm2.sharded_tensors import assign_
from recipe.storage.addresses import open_place
from recipe.training.folder import check_scratch, localise, scratch_folder, take_scratch
from recipe.training.model import DiffusionModel
from recipe.training.origin import NAME as ORIGIN
from recipe.training.origin import Origin
from recipe.weights.checkpoints import newest_whole
from recipe.weights.pickles import check_checkpoint, load_torch, read_metadata
from recipe.weights.snapshots import SnapshotReader

LABELS = "unet.emb_label.weight"
AUGMENT = ("unet.emb_augment.weight", "unet.emb_augment_gain")
GROUP_BYTES = 2**28  # read at once from a sharded checkpoint
_BLOCK = re.compile(r"(?<=\.)(\d+)x\1(?=_)")
_ATTENTION = re.compile(r"\.attn_(qkv|proj)\.weight$")


class InitError(UserError):
    """Weights that do not fit the network; the message lists the differences."""


Shapes = Mapping[str, tuple[int, ...]]
Reader = Callable[[Iterable[str]], Iterator[tuple[str, Tensor]]]


def load_initial_weights(model: DiffusionModel, config: Config, facts: DataFacts) -> None:
    """Put the weights that `config.init` names into the network and its averages. On all ranks.

    Args:
        facts: of the data; where theirs mean other things than those of the weights, that is said.

    Raises:
        InitError, SnapshotError, StorageError, UntrustedPickle: weights that are missing, damaged or do not fit.
    """
    assert config.init is not None
    path = config.init.path
    with _open(path, config) as (given, read, before):
        compare(before, facts, path, config.model.label_dim != 0)
        own = {name: tuple(tensor.shape) for name, tensor in model.net.state_dict().items()}
        pairs, fresh = match(own, given, path)
        targets = model.net.state_dict()
        wanted = {source: name for name, source in pairs.items()}
        for source, tensor in read(wanted):
            if not bool(tensor.isfinite().all()):
                raise InitError(
                    f"init.path {path}: {source} holds numbers that are not finite: that run had diverged; name an "
                    "earlier snapshot"
                )
            assign_(targets[wanted[source]], tensor.float())
    model.reset_averages_()
    drawn = f"; drawn anew: {', '.join(sorted(fresh))}" if fresh else ""
    say(f"init: {len(pairs)} tensors from {path}{drawn}")


def compare(before: DataFacts, now: DataFacts, path: str, labels: bool) -> None:
    """Say in what the data of the weights at `path` differ in meaning from those at hand.

    Raises:
        InitError: one are pixels and the others latents.
    """
    if None not in (before.kind, now.kind) and before.kind != now.kind:
        raise InitError(f"init.path {path}: is of {before.kind}, but the data are {now.kind}; name other weights")
    for difference in differences(before, now, labels):
        say(f"init: other data than those of {path}: {difference}")


def match(own: Shapes, given: Shapes, path: str) -> tuple[dict[str, str], set[str]]:
    """Which given tensor goes into which of one's own, and which of one's own stay as drawn.

    Raises:
        InitError: differences that no rule covers.
    """
    levels = {_by_level(name, given): name for name in given}
    pairs, fresh, wrong = {}, set(), []
    other_resolution = _top(own) != _top(given)
    for name, shape in own.items():
        source = levels.pop(_by_level(name, own), None)
        if source is not None and given[source] == shape:
            pairs[name] = source
        elif name in (LABELS, *AUGMENT) or (source is None and other_resolution and _ATTENTION.search(name)):
            fresh.add(name)
        elif source is None:
            wrong.append(f"{name} {list(shape)} is missing there")
        else:
            wrong.append(f"{name} is {list(shape)} here and {list(given[source])} there")
    for source in levels.values():
        if source not in (LABELS, *AUGMENT) and not (other_resolution and _ATTENTION.search(source)):
            wrong.append(f"{source} {list(given[source])} is only there")
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise InitError(
            f"init.path {path}: holds another network: {'; '.join(wrong[:5])}{more}; only model.label_dim, "
            "model.img_resolution and augment may differ: set the other keys of model as they were there"
        )
    return pairs, fresh


def _top(names: Iterable[str]) -> int:
    """The highest resolution that names of blocks mention."""
    return max((int(found[1]) for name in names if (found := _BLOCK.search(name))), default=0)


def _by_level(name: str, names: Iterable[str]) -> str:
    """A block's name with its level for its resolution: enc.64x64_block0 -> enc.level0_block0."""
    top = _top(names)
    return _BLOCK.sub(lambda found: f"level{(top // max(int(found[1]), 1)).bit_length() - 1}", name)


@contextlib.contextmanager
def _open(path: str, config: Config) -> Iterator[tuple[Shapes, Reader, DataFacts]]:
    """Names and shapes of the weights at `path`, what reads them, and the facts of the data that they are from."""
    if path.endswith(".safetensors"):
        with SnapshotReader(path) as reader:
            yield reader.shapes(), lambda names: ((name, reader.read(name)) for name in names), reader.info.dataset
        return
    place = open_place(path)
    checkpoint = newest_whole(place.child("checkpoints"))
    if checkpoint is None:
        raise InitError(f"init.path {path}: holds no whole checkpoint; name a run's folder or a .safetensors snapshot")
    origin = Origin.read(place)
    facts = DataFacts() if origin is None else DataFacts.from_json(origin.facts, place.describe(ORIGIN))
    folder = Path(path) if place.is_local else scratch_folder(config) / "init"
    if dist.get_local_rank() == 0 and not place.is_local:
        check_scratch(folder.parent, open_place(config.run_folder()).address)
        take_scratch(folder.parent, open_place(config.run_folder()).address)
        localise(place, checkpoint, folder)
    dist.barrier()
    local = folder / "checkpoints" / checkpoint.name
    check_checkpoint(local)
    if checkpoint.sharded:
        yield _shapes_of_sharded(local), lambda names: _read_sharded(local, names), facts
    else:
        state = load_torch(local, str(local), mmap=True)["state"]["model"]
        tensors = {name.removeprefix("net."): tensor for name, tensor in state.items() if name.startswith("net.")}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        yield shapes, lambda names: ((name, tensors[name]) for name in names), facts


def _shapes_of_sharded(folder: Path) -> Shapes:
    kinds = read_metadata(folder).state_dict_metadata
    prefix = "state.model.net."
    return {
        key.removeprefix(prefix): tuple(kind.size)
        for key, kind in kinds.items()
        if key.startswith(prefix) and isinstance(kind, TensorStorageMetadata)
    }


def _read_sharded(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    shapes = _shapes_of_sharded(folder)
    group: dict[str, Tensor] = {}
    wanted = list(names)
    for index, name in enumerate(wanted):
        group[f"net.{name}"] = torch.empty(shapes[name])
        full = sum(tensor.nbytes for tensor in group.values()) > GROUP_BYTES
        if full or index == len(wanted) - 1:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it is one process
                load({"state": {"model": group}}, storage_reader=FileSystemReader(folder), no_dist=True)
            yield from ((key.removeprefix("net."), tensor) for key, tensor in group.items())
            group = {}
