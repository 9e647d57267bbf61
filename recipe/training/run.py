"""The life of a run: from the checks before it to the last file stored."""

import dataclasses
import logging

import torch
from composer import Trainer
from composer.devices import Device
from composer.utils import dist, get_device

from recipe.command_line import AGAIN, UserError, say
from recipe.configuration.inputs import Data
from recipe.configuration.schema import Config
from recipe.data.checks import resolve
from recipe.data.facts import DataError
from recipe.data.index import INDEX, sources
from recipe.data.loader import check_sockets
from recipe.ranks import Ranks, find_ranks
from recipe.storage.addresses import open_place
from recipe.storage.ownership import Ownership
from recipe.storage.places import AccessError, ExpiredKeysError, StorageError
from recipe.training.checkpointing import Checkpoints
from recipe.training.finite import way_back
from recipe.training.folder import RunFolder
from recipe.training.preflight import RunError, Start, prepare
from recipe.training.stopping import GracefulStop
from recipe.training.trainer import build_trainer

log = logging.getLogger(__name__)
EXIT_PREEMPTED = AGAIN  # a signal stopped the run, and everything is saved
READY = "train/ready"


def train(config: Config, ranks: Ranks | None = None) -> int:
    """Train until `config.duration`, from the run's latest checkpoint if there is one; returns the exit status.

    Args:
        ranks: of this launch, if they have met already.

    Raises:
        UserError: bad data, access, configuration or folder; a loss that is NaN; results that cannot be stored.
    """
    check_device(config)
    check_sockets(config.data)
    ranks = ranks or find_ranks()
    if ranks.first:
        found, ownership = prepare(config)
        ranks.tell(READY, "")
    else:
        found, ownership = None, None
        ranks.hear(READY)  # however long that takes: what waits inside a process group gives up after 5 minutes
    try:
        start, device = meet(config, found)
        trainer, folder, stop = build_trainer(start, device, ownership)
        try:
            fit(trainer, config, folder, stop)
        except BaseException:
            trainer.engine.close()  # Trainer.close would wait here for ranks that did not fail
            raise
        trainer.close()  # hands in the last event files
        finish(trainer, folder, stop)
        stop.leave_together()
    except ExpiredKeysError as error:
        error.again = True  # they were good when the run began
        raise
    finally:
        if ownership is not None:
            give_up(ownership)
    images, folder = trainer.state.timestamp.sample.value, config.run_folder()
    if stop.stopped:
        say(f"stopped at {images} images, saved in {folder}; the same command goes on from there")
        return EXIT_PREEMPTED
    say(f"trained to {images} images; everything is in {folder}")
    return 0


def meet(config: Config, found: Start | None) -> tuple[Start, Device]:
    """Begin the process group, and give every rank what rank 0 found out before it; `found` is None on the others.

    Each rank keeps its own configuration: machines may name their folders differently (`${oc.env:TMPDIR}`).
    """
    device = get_device(None if config.device == "auto" else config.device)
    dist.initialize_dist(device)
    shared = [found]
    dist.broadcast_object_list(shared)
    assert shared[0] is not None
    start = shared[0]
    return dataclasses.replace(start, config=resolve(config, start.data.facts)), device


def fit(trainer: Trainer, config: Config, folder: RunFolder, stop: GracefulStop) -> None:
    """Train to the end, if it is not reached already, which `Trainer.fit` would refuse.

    Raises:
        UserError: a loss that is NaN, or storage that is not to be had any more.
    """
    assert trainer.state.max_duration is not None
    try:
        if trainer.state.timestamp < trainer.state.max_duration:
            trainer.fit()
    except UserError as error:
        lost = unreadable(config.data) if isinstance(error, DataError) else None
        raise lost or error from None
    except Exception as error:
        batch, text = trainer.state.timestamp.batch.value, " ".join(str(error).split())
        if "contains a NaN" in text:  # NaNMonitor's words
            raise RunError(f"batch {batch}: {text} {way_back(folder, batch)}") from None
        lost = stop.problem() or unreadable(config.data)
        if lost is not None:  # then what failed is the first thing that needed it
            raise lost from None
        if "DataLoader worker" in text:  # torch's
            raise RunError(
                f"batch {batch}: {text}; if the machine's memory was full, lower data.num_workers; the same command "
                "goes on from the last checkpoint"
            ) from None
        raise


def give_up(ownership: Ownership) -> None:
    """Release the run's folder; if it cannot be written to any more, the claim ends with this process all the same."""
    try:
        ownership.release()
    except StorageError as error:
        log.warning("%s", error)


def unreadable(data: Data) -> StorageError | None:
    """Why shards cannot be fetched from S3, whose client in streaming does not say it, if they cannot."""
    for source in sources(data):
        if source.remote is not None and source.remote.startswith("s3://"):
            try:
                open_place(source.remote).size(INDEX)
            except StorageError as error:
                error.again = isinstance(error, AccessError)  # the run has begun, so they were good
                return error
    return None


def finish(trainer: Trainer, folder: RunFolder, stop: GracefulStop) -> None:
    """Wait until every rank has stored everything. Raises UnsavableError if it could not."""
    folder.uploads.drain()
    stop.raise_together()
    if dist.get_local_rank() == 0:
        folder.empty_scratch()
    for callback in trainer.state.callbacks:
        if isinstance(callback, Checkpoints) and dist.get_global_rank() == 0:
            callback.tidy()


def check_device(config: Config) -> None:
    """Raises RunError if the configuration asks for a GPU that is not there."""
    if torch.cuda.is_available() and config.device != "cpu":
        return
    if config.device == "gpu":
        raise RunError("device = gpu: PyTorch finds no usable CUDA device; use device=cpu, or repair the driver")
    if config.device_train_microbatch_size == "auto":
        raise RunError(
            "device_train_microbatch_size = auto: needs CUDA, whose memory limit it probes; use a number or null"
        )
