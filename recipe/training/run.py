"""The life of a run: from the checks before it to the last file stored."""

import dataclasses
import logging

import torch
from composer import Trainer
from composer.devices import Device
from composer.utils import dist, get_device

from recipe.command_line import say
from recipe.configuration.schema import Config
from recipe.data.checks import resolve
from recipe.data.loader import check_sockets
from recipe.training.checkpointing import Checkpoints
from recipe.training.finite import way_back
from recipe.training.folder import RunFolder
from recipe.training.preflight import RunError, Start, prepare
from recipe.training.stopping import GracefulStop, UnsavableError
from recipe.training.trainer import build_trainer

log = logging.getLogger(__name__)
EXIT_PREEMPTED = 75  # "try again": a signal stopped the run, everything is saved, and the same command goes on


def train(config: Config) -> int:
    """Train until `config.duration`, from the run's latest checkpoint if there is one; returns the exit status.

    Raises:
        UserError: bad data, access, configuration or folder; a loss that is NaN; results that cannot be stored.
    """
    check_device(config)
    check_sockets(config.data)
    found, ownership = prepare(config) if dist.get_global_rank() == 0 else (None, None)
    try:
        start, device = meet(config, found)
        trainer, folder, stop = build_trainer(start, device, ownership)
        try:
            fit(trainer, folder)
        except BaseException:
            trainer.engine.close()  # Trainer.close would wait here for ranks that did not fail
            raise
        trainer.close()  # hands in the last event files
        finish(trainer, folder, stop)
        stop.leave_together()
    finally:
        if ownership is not None:
            ownership.release()
    images = trainer.state.timestamp.sample.value
    say(f"{'stopped at' if stop.stopped else 'trained to'} {images} images; everything is in {config.run_folder()}")
    return EXIT_PREEMPTED if stop.stopped else 0


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


def fit(trainer: Trainer, folder: RunFolder) -> None:
    """Train to the end, if it is not reached already, which `Trainer.fit` would refuse."""
    assert trainer.state.max_duration is not None
    try:
        if trainer.state.timestamp < trainer.state.max_duration:
            trainer.fit()
    except RuntimeError as error:
        batch, text = trainer.state.timestamp.batch.value, " ".join(str(error).split())
        if "contains a NaN" in text:  # NaNMonitor's words
            raise RunError(f"batch {batch}: {text} {way_back(folder, batch)}") from None
        if "DataLoader worker" in text:  # torch's
            raise RunError(
                f"batch {batch}: {text}; if the machine's memory was full, lower data.num_workers; the same command "
                "goes on from the last checkpoint"
            ) from None
        raise


def finish(trainer: Trainer, folder: RunFolder, stop: GracefulStop) -> None:
    """Wait until every rank has stored everything. Raises UnsavableError if it could not."""
    folder.uploads.drain()
    problems = [problem for problem in dist.all_gather_object(stop.problem()) if problem is not None]
    if problems:
        raise UnsavableError(problems[0])
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
