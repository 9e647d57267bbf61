"""Everything that can stop a run, found out on rank 0 before a process group exists, so that one rank says it once."""

import importlib.metadata
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from recipe.command_line import UserError
from recipe.configuration.agreement import check_agreement
from recipe.configuration.reader import to_yaml
from recipe.configuration.schema import Config
from recipe.configuration.spans import Span
from recipe.data.autoencoder import find_vae
from recipe.data.checks import TrainingData, check_data, resolve
from recipe.data.index import sources
from recipe.edm2.networks.precond import Precond
from recipe.planning.sizes import checkpoint_bytes, snapshot_bytes
from recipe.storage.addresses import open_place
from recipe.storage.ownership import Ownership
from recipe.storage.places import Place
from recipe.training.continuation import find_continuation
from recipe.training.folder import PROGRESS, check_scratch, local_folder
from recipe.training.origin import origin_of, refuse_snapshots
from recipe.weights.checkpoints import Checkpoint, clean_up, list_checkpoints, newest_whole
from recipe.weights.snapshots import remove_unfinished

CONFIG = "config.yaml"
HEADER = "# edm2-recipe"
FOLDERS = "checkpoints", "snapshots", "samples", "tensorboard"  # what a run makes below its folder


class RunError(UserError):
    """A run that cannot start or go on; the message says why and what to do."""


@dataclass(frozen=True)
class Start:
    """What rank 0 found out before the run, and every rank needs to begin.

    Attributes:
        config: the resolved configuration: no key of `model` but `dtype` is auto.
        data: what is known of the data.
        place: the run's folder.
        checkpoint: to go on from, relative to the run's checkpoints folder; None = from the beginning.
        run: name of the run, in its snapshots.
    """

    config: Config
    data: TrainingData
    place: Place
    checkpoint: Checkpoint | None
    run: str | None = None

    @property
    def steps_per_epoch(self) -> int:
        return self.data.samples // self.config.global_batch_size

    @property
    def epoch(self) -> int:
        """Images of an epoch: whole batches only."""
        return self.steps_per_epoch * self.config.global_batch_size

    def images(self, span: Span) -> int:
        """Length of a span in images."""
        return span.images(self.config.global_batch_size, self.epoch)

    def batches(self, span: Span) -> str:
        """Length of a span in steps, as one of Composer's time strings."""
        return f"{self.images(span) // self.config.global_batch_size}ba"


def prepare(config: Config) -> tuple[Start, Ownership]:
    """Check data, access, disk space and agreement, take the run's folder and clean it up.

    Raises:
        UserError: bad data, no access, another live run, other hyper-parameters, a damaged checkpoint, a full disk.
    """
    data = check_data(config)
    config = resolve(config, data.facts)  # numbers are stored: other data must not change them on resume
    if config.samples.vae is not None:
        _, channels, _ = config.model.shape()
        find_vae(config.samples.vae, "samples.vae").check_latents(channels, "model.img_channels")
    if config.metrics is not None:
        from recipe.training.metrics import check_metrics  # which few runs need

        check_metrics(config.metrics, config.samples, config.model.shape()[0])
    place = open_place(config.run_folder())
    place.check_access()
    check_names(local_folder(config, place))
    check_space(config, place)
    check_scratch_folder(config, place)
    changed = check_folder(config, place)
    ownership = Ownership(place)
    try:
        if place.is_local:
            remove_unfinished(local_folder(config, place) / "snapshots")
        checkpoint = find_checkpoint(place, config.autoresume)
        if checkpoint is None and config.init is not None and config.init.whole:
            find_continuation(config)
        origin = origin_of(config, data, place, checkpoint is not None, changed)
        text = f"{HEADER} {importlib.metadata.version('edm2-recipe')}\n{to_yaml(config)}"
        place.write(CONFIG, text.encode())
        origin.write(place)
    except BaseException:
        ownership.release()
        raise
    return Start(config, data, place, checkpoint, origin.run), ownership


def check_names(folder: Path) -> None:
    """Raises RunError if a file in the run's folder has the name of one of the folders that the run writes."""
    for name in FOLDERS:
        path = folder / name
        if os.path.lexists(path) and not path.is_dir():
            raise RunError(f"{path}: is no folder, but the run keeps {name} in one of that name; move it away")


def check_folder(config: Config, place: Place) -> list[str]:
    """Compare the run's folder with the configuration; returns what changed of it, as `allow_changes` permits.

    Raises:
        RunError: it holds files of something else.
        DisagreementError: it holds a run of other hyper-parameters.
    """
    if place.size(CONFIG) is None:
        found = [f"checkpoints/{each.name}" for each in list_checkpoints(place.child("checkpoints"))]
        if found:
            newest_whole(place.child("checkpoints"))  # a checkpoint with foreign code is refused for that first
            raise RunError(
                f"save_folder {place.address}: holds {found[0]}, but no {CONFIG} of the run that wrote it; bring that "
                "too, choose another run_name, or start from these weights with init.path"
            )
        return []
    stored = place.read(CONFIG).decode(errors="replace")
    if not stored.startswith(HEADER):
        raise RunError(
            f"save_folder {place.address}: holds a {CONFIG} that is not of a run of this recipe, and that a run would "
            "overwrite; choose another save_folder or run_name"
        )
    return check_agreement(config, stored, f"save_folder {place.address}")


def check_scratch_folder(config: Config, place: Place) -> None:
    """Raises RunError or ScratchError if the folder that this run would empty holds anything that is not its own."""
    folder = local_folder(config, place)
    if place.is_local:
        return
    check_scratch(folder, place.address)
    scratch = Path(os.path.realpath(folder))
    for source in sources(config.data):
        if Path(os.path.realpath(source.local)).is_relative_to(scratch):
            raise RunError(
                f"{source.key}.local {source.local}: lies in {folder}, which the run empties; choose another folder, "
                "or another scratch_folder"
            )


def find_checkpoint(place: Place, autoresume: bool) -> Checkpoint | None:
    """The newest whole checkpoint; what kills left beside it is deleted.

    Raises:
        RunError: there are checkpoints and autoresume is off, or there were some and they are gone.
    """
    folder = place.child("checkpoints")
    if not autoresume:
        if list_checkpoints(folder):
            raise RunError(
                f"save_folder {place.address}: holds the checkpoints of a run, and autoresume is false; "
                "set autoresume=true to go on, or choose another run_name"
            )
        refuse_snapshots(place)
        return None
    checkpoint = clean_up(folder)
    if checkpoint is None and place.size(PROGRESS) is not None:
        last = place.read(PROGRESS).decode().strip()
        raise RunError(
            f"save_folder {place.address}: the run had reached checkpoint {last}, but no whole one is left (deleted or "
            "expired); choose another run_name, or move the whole folder away to begin anew"
        )
    return checkpoint


def check_space(config: Config, place: Place) -> None:
    """Raises RunError if this machine's disk has no room for what the run at `place` keeps on it at one time."""
    folder = local_folder(config, place).absolute()
    while not folder.exists():
        folder = folder.parent
    with torch.device("meta"):
        net = Precond(**config.network_arguments())
    averages, dtype = len(config.ema.sigma_rels), getattr(torch, config.ema.snapshot_dtype)
    checkpoints = 2 if not place.is_local or config.checkpoints.keep < 0 else config.checkpoints.keep + 1
    needed = checkpoints * checkpoint_bytes(net, averages) + 2 * averages * snapshot_bytes(net, dtype)
    free = shutil.disk_usage(folder).free
    if free < needed:
        key = "save_folder" if place.is_local else "scratch_folder"
        raise RunError(
            f"{key} {folder}: has {free / 1e9:.1f} GB free, but {checkpoints} checkpoints and two moments' snapshots "
            f"need {needed / 1e9:.1f} GB; make room, lower checkpoints.keep, or choose another {key}"
        )
