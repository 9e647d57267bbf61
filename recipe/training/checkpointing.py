"""Puts a checkpoint into a run, whatever the number of ranks and the sharding that wrote it.

Composer loads a checkpoint only into the kind of run that wrote it, fails when a callback was added or left out, and
unpickles whatever it finds. Here tensors go by name into the run's own, resharded on the way, and of the rest only what
defines the state: the clock and the position in the data. Every pickle was checked before (`recipe.weights.pickles`).
"""

import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from composer.callbacks import CheckpointSaver
from composer.core import Callback, State
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist
from torch.distributed.checkpoint._nested_dict import unflatten_state_dict
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from recipe.edm2.sharded_tensors import assign_
from recipe.training.finite import check_finite, refuse_checkpoint
from recipe.training.folder import PROGRESS, RunFolder, localise
from recipe.training.stopping import UnsavableError
from recipe.weights.checkpoints import Checkpoint, retain
from recipe.weights.pickles import check_checkpoint, load_torch, read_metadata


class FileUploads(LoggerDestination):
    """Stores the files that Composer's parts hand to the logger: the parts of checkpoints."""

    def __init__(self, folder: RunFolder):
        self.folder = folder

    def can_upload_files(self) -> bool:
        return True

    def upload_file(self, state: State, remote_file_name: str, file_path: Path, *, overwrite: bool = False) -> None:
        self.folder.keep(os.path.relpath(file_path, self.folder.local))


class Checkpoints(CheckpointSaver):
    """Composer's checkpoints, stored after the snapshots of their time, and the oldest deleted.

    Args:
        folder: of the run.
        interval: Composer time string.
        keep: how many whole ones stay; -1 = all.
    """

    def __init__(self, folder: RunFolder, interval: str, keep: int):
        super().__init__(
            folder=str(folder.local / "checkpoints"),
            filename="ba{batch}-rank{rank}.pt",
            remote_file_name=None if folder.place.is_local else "checkpoints/ba{batch}-rank{rank}.pt",
            latest_filename=None,  # which one is the newest whole one is seen from what is there
            latest_remote_file_name=None,
            save_interval=interval,
            num_checkpoints_to_keep=-1,
            overwrite=True,  # one cut short by a kill is written again
        )
        self.run_folder = folder
        self.keep = keep

    def _save_checkpoint(self, state: State, logger: Logger) -> None:
        check_finite(state, self.run_folder)
        uploads, place = self.run_folder.uploads, self.run_folder.place
        if place.is_local:
            uploads.drain()  # a checkpoint on disk says that the snapshots before it are on disk
            if uploads.failure is not None:
                raise UnsavableError(str(uploads.failure))
        super()._save_checkpoint(state, logger)
        if dist.get_global_rank() == 0:
            uploads.submit(self.tidy)

    def tidy(self) -> None:
        """Delete the oldest checkpoints and note the newest whole one; other ranks' parts of it may be under way."""
        newest = retain(self.run_folder.place.child("checkpoints"), self.keep)
        if newest is not None:
            self.run_folder.place.write(PROGRESS, newest.name.encode())


log = logging.getLogger(__name__)
KEPT = ("timestamp", "dataset_state")  # of the state beside tensors; the rest follows from the configuration


class Restore(Callback):
    """Loads a checkpoint when the Trainer has made its state and not yet wrapped it in DDP.

    Args:
        folder: of the run.
        name: of the checkpoint, a `.pt` file or a folder if it is sharded, on a disk that this rank can read.
        samples_per_epoch: a multiple of the batch size.
    """

    def __init__(self, folder: RunFolder, name: str, samples_per_epoch: int):
        self.folder = folder
        self.path = folder.local / "checkpoints" / name
        self.samples_per_epoch = samples_per_epoch

    def before_load(self, state: State, logger: Logger) -> None:
        tensors = {"model": state.get_model_state_dict(), "optimizers": _moments(state.get_optim_state_dict())}
        with torch.no_grad():
            rest = _read_sharded(self.path, tensors) if self.path.is_dir() else _read_single(self.path, tensors)
        refuse_checkpoint(self.folder, self.path.name, _floats(tensors))
        optimizers = state.get_optim_state_dict()
        for name, moments in tensors["optimizers"].items():
            optimizers[name]["state"] = moments["state"]
        position = rest["dataset_state"]["train"]
        epoch_is_over = position["sample_in_epoch"] >= self.samples_per_epoch
        if epoch_is_over:  # written after its last batch: what the data holds beyond is never trained on
            position |= {"epoch": position["epoch"] + 1, "sample_in_epoch": 0}
        loaded = {"model": tensors["model"], "optimizers": optimizers}
        state.load_state_dict(loaded | {key: rest[key] for key in KEPT if key in rest}, logger, strict=True)
        if epoch_is_over:
            state.timestamp = state.timestamp.to_next_epoch()
        log.info("went on from %s", self.path)


def _moments(optimizers: dict[str, Any]) -> dict[str, Any]:
    """The tensors of the optimizers' state; their settings are the configuration's."""
    return {name: {"state": state["state"]} for name, state in optimizers.items()}


def _floats(tree: dict[str, Any]) -> Iterator[torch.Tensor]:
    for value in tree.values():
        if isinstance(value, dict):
            yield from _floats(value)
        elif isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim > 0:
            yield value


def _read_sharded(folder: Path, tensors: dict[str, Any]) -> dict[str, Any]:
    """Fill `tensors` from a sharded checkpoint, each rank with what it holds; returns the rest of the state."""
    load({"state": tensors}, storage_reader=FileSystemReader(folder))
    metadata = read_metadata(folder)
    assert metadata.planner_data is not None and metadata.storage_data is not None
    places = {index.fqn: storage for index, storage in metadata.storage_data.items()}
    flat, paths = {}, {}
    for key, kind in metadata.state_dict_metadata.items():
        path = metadata.planner_data[key]
        if isinstance(kind, BytesStorageMetadata) and path[0] == "state" and path[1] in KEPT:
            place = places[key]
            with open(folder / place.relative_path, "rb") as file:
                file.seek(place.offset)
                flat[key] = load_torch(io.BytesIO(file.read(place.length)), f"{folder / place.relative_path}, {key}")
            paths[key] = path
    return unflatten_state_dict(flat, paths).get("state", {})


def _read_single(path: Path, tensors: dict[str, Any]) -> dict[str, Any]:
    """Fill `tensors` from a checkpoint in one file, each rank with what it holds; returns the rest of the state."""
    state = load_torch(path, str(path), mmap=True)["state"]
    _fill(tensors, state)
    return state


def _fill(target: dict[str, Any], source: dict[str, Any]) -> None:
    for key, value in target.items():
        if isinstance(value, dict):
            _fill(value, source[key])
        elif isinstance(value, torch.Tensor):
            assign_(value, source[key])


def restore_from(folder: RunFolder, checkpoint: Checkpoint | None, samples_per_epoch: int) -> Restore | None:
    """What loads `checkpoint` of the run; brought to this machine first if it is in object storage. On all ranks.

    Raises:
        UntrustedPickle, StorageError: on every rank, if any rank cannot have it.
    """
    if checkpoint is None:
        return None
    problem = None
    if dist.get_local_rank() == 0:
        try:
            if not folder.place.is_local:
                localise(folder.place, checkpoint, folder.local)
            check_checkpoint(folder.local / "checkpoints" / checkpoint.name)
        except ValueError as error:
            problem = error
    for found in dist.all_gather_object(problem):  # also waits for all machines
        if found is not None:
            raise found
    return Restore(folder, checkpoint.name, samples_per_epoch)
