"""Goes on with a training elsewhere: its raw weights, averages, Adam's moments and clock, which convert.py has read.

The run is then where that training was: what it draws and when it writes follow from the images seen. The order of the
data is this recipe's, at the place in it that so many images lead to.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor

from recipe.command_line import say
from recipe.configuration.schema import Config
from recipe.data.facts import DataFacts
from recipe.edm2.sharded_tensors import assign_
from recipe.training.initial_weights import InitError, compare
from recipe.training.model import ema_key
from recipe.weights.moments import KINDS, STEP, moments_name, weights_name
from recipe.weights.snapshots import SnapshotError, SnapshotInfo, SnapshotReader, snapshot_name

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Continuation:
    """Files of one moment of a training.

    Attributes:
        nimg: images seen.
        files: by what they are for: "net", a sigma_rel's key, "adam".
        facts: of the data.
        steps: Adam's updates.
    """

    nimg: int
    files: Mapping[str, str]
    facts: DataFacts
    steps: int


def find_continuation(config: Config) -> Continuation:
    """The files that `config.init` names, their headers read.

    Raises:
        InitError, SnapshotError, StorageError: files that are missing, damaged, or do not go with the configuration.
    """
    assert config.init is not None
    path = config.init.path
    info = _info(path)
    folder, name = path.rpartition("/")[0], PurePosixPath(path).name
    if name != weights_name(info.nimg):
        rule = "is not the raw weights of a training, which convert.py calls weights-IMAGES.safetensors"
        raise InitError(f"init.path {path}: {rule}; name those, or set init.whole=false")
    if info.nimg % config.global_batch_size != 0:
        rule = f"was taken at {info.nimg} images, which are no whole number of steps of {config.global_batch_size}"
        raise InitError(f"init.path {path}: {rule}; set global_batch_size as it was there, or init.whole=false")
    names = {ema_key(length): snapshot_name(info.nimg, length) for length in config.ema.sigma_rels}
    names["adam"] = moments_name(info.nimg)
    files = {"net": path, **{key: f"{folder}/{name}" if folder else name for key, name in names.items()}}
    infos = {}
    for key, file in files.items():
        try:
            infos[key] = _info(file)
        except SnapshotError as error:
            fix = "let ema.sigma_rels be those of that training, convert it again, or set init.whole=false"
            raise InitError(f"init.whole: needs beside {name} {', '.join(names.values())}: {error}; {fix}") from None
    return Continuation(info.nimg, files, info.dataset, infos["adam"].extra[STEP])


def _info(path: str) -> SnapshotInfo:
    with SnapshotReader(path) as reader:
        return reader.info


class Continue(Callback):
    """Puts a training elsewhere into a run when the Trainer has made its state and not yet wrapped it in DDP.

    Args:
        config: of the run; `init` names the training.
        facts: of the data.
        samples_per_epoch: a multiple of the batch size.
    """

    def __init__(self, config: Config, facts: DataFacts, samples_per_epoch: int):
        self.found = find_continuation(config)
        self.batch_size = config.global_batch_size
        self.samples_per_epoch = samples_per_epoch
        compare(self.found.facts, facts, self.found.files["net"], config.model.label_dim != 0)

    def before_load(self, state: State, logger: Logger) -> None:
        model, optimizers = state.get_model_state_dict(), state.get_optim_state_dict()
        with torch.no_grad():
            for key, path in self.found.files.items():
                targets = self._moments(optimizers) if key == "adam" else _part(model, key)
                _fill(targets, path)
        epoch, within = divmod(self.found.nimg, self.samples_per_epoch)
        loader: Any = state.train_dataloader
        position = loader.dataset.state_dict(within, True) | {"epoch": epoch}
        dist.barrier()  # ranks of a node share the memory that says where data go on: none writes while another reads
        state.load_state_dict(
            {
                "model": model,
                "optimizers": optimizers,
                "timestamp": {"Timestamp": self._clock(state, epoch, within)},
                "dataset_state": {"train": position},
            },
            logger,
            strict=True,
        )
        say(f"init: goes on at {self.found.nimg} images with the training in {self.found.files['net']}")

    def _clock(self, state: State, epoch: int, within: int) -> dict[str, Any]:
        batch = self.found.nimg // self.batch_size
        now = {"epoch": epoch, "batch": batch, "sample": self.found.nimg}
        return (
            state.timestamp.state_dict()
            | now
            | {"batch_in_epoch": within // self.batch_size, "sample_in_epoch": within}
        )

    def _moments(self, optimizers: dict[str, Any]) -> dict[str, Tensor]:
        """The tensors to fill by their names in the file; Adam's count of updates is set."""
        (optimizer,) = optimizers.values()
        found = {}
        for name, moments in optimizer["state"].items():
            moments["step"].fill_(self.found.steps)
            found |= {f"{kind}/{name.removeprefix('net.')}": moments[kind] for kind in KINDS}
        return found


def _part(model: dict[str, Any], key: str) -> dict[str, Tensor]:
    """The network's tensors, or an average's, by their names in it."""
    prefix = "net." if key == "net" else f"emas.{key}."
    return {name.removeprefix(prefix): tensor for name, tensor in model.items() if name.startswith(prefix)}


def _fill(targets: Mapping[str, Tensor], path: str) -> None:
    with SnapshotReader(path) as reader:
        given, own = reader.shapes(), {name: tuple(tensor.shape) for name, tensor in targets.items()}
        odd = sorted(name for name in given.keys() | own.keys() if given.get(name) != own.get(name))
        if odd:
            here, there = own.get(odd[0], "missing"), given.get(odd[0], "missing")
            raise InitError(
                f"init.path {path}: holds another network: {odd[0]} is {here} here and {there} there; set the keys of "
                "model as they were there, or init.whole=false"
            )
        for name, tensor in targets.items():
            assign_(tensor, reader.read(name).float())
