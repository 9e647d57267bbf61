"""Everything that can stop a run, found out on rank 0 before a process group exists, and told once."""

import importlib.metadata
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recipe.command_line import UserError
from recipe.configuration.agreement import check_agreement
from recipe.configuration.reader import to_yaml
from recipe.configuration.schema import Config
from recipe.data.autoencoder import find_vae
from recipe.data.checks import check_data, resolve
from recipe.edm2.networks.precond import Precond
from recipe.storage.addresses import open_place
from recipe.storage.ownership import Ownership
from recipe.storage.places import Place
from recipe.training.folder import PROGRESS, scratch_folder
from recipe.weights.checkpoints import Checkpoint, clean_up, list_checkpoints

CONFIG = "config.yaml"


class RunError(UserError):
    """A run that cannot start or go on; the message says why and what to do."""


@dataclass(frozen=True)
class Start:
    """What the ranks need to know to begin.

    Attributes:
        samples: in the data set.
        statistics: of the data.
        checkpoint: to go on from, relative to the run's checkpoints folder; None = from the beginning.
    """

    samples: int
    statistics: dict[str, Any]
    checkpoint: Checkpoint | None


def prepare(config: Config) -> tuple[Start, Ownership]:
    """Check data, access, disk space and agreement, take the run's folder and clean it up.

    Raises:
        ValueError: one of DataError, StorageError, OwnedError, DisagreementError, UntrustedPickle, VaeError, RunError.
    """
    samples, statistics = check_data(config)
    config = resolve(config, statistics)  # the number is stored: other data must not change it on resume
    if config.samples.vae is not None:
        find_vae(config.samples.vae, "samples.vae").check_latents(config.model.img_channels, "model.img_channels")
    place = open_place(config.run_folder())
    place.check_access()
    check_space(config)
    stored = place.read(CONFIG).decode() if place.size(CONFIG) is not None else None
    if stored is not None:
        check_agreement(config, stored, f"save_folder {place.address}")
    ownership = Ownership(place)
    try:
        checkpoint = find_checkpoint(config, place)
        text = f"# edm2-recipe {importlib.metadata.version('edm2-recipe')}\n{to_yaml(config)}"
        place.write(CONFIG, text.encode())
    except BaseException:
        ownership.release()
        raise
    return Start(samples, statistics, checkpoint), ownership


def find_checkpoint(config: Config, place: Place) -> Checkpoint | None:
    """The newest whole checkpoint; what kills left beside it is deleted.

    Raises:
        RunError: there are checkpoints and autoresume is off, or there were some and they are gone.
    """
    folder = place.child("checkpoints")
    if not config.autoresume:
        if list_checkpoints(folder):
            raise RunError(
                f"save_folder {place.address}: holds the checkpoints of a run, and autoresume is false; "
                "set autoresume=true to go on, or choose another run_name"
            )
        return None
    checkpoint = clean_up(folder)
    if checkpoint is None and place.size(PROGRESS) is not None:
        last = place.read(PROGRESS).decode().strip()
        raise RunError(
            f"save_folder {place.address}: the run had reached checkpoint {last}, but no whole one is left (deleted or "
            f"expired); choose another run_name, or delete {PROGRESS} there to begin anew"
        )
    return checkpoint


def check_space(config: Config) -> None:
    """Raises RunError if this machine's disk has no room for what the run keeps on it at one time."""
    place = open_place(config.run_folder())
    folder = (Path(config.run_folder()) if place.is_local else scratch_folder(config)).absolute()
    while not folder.exists():
        folder = folder.parent
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in Precond(**config.network_arguments()).parameters())
    averages = len(config.ema.sigma_rels)
    checkpoints = 2 if not place.is_local or config.checkpoints.keep < 0 else config.checkpoints.keep + 1
    # weights, Adam's two moments and the averages in float32; the snapshots of two moments
    needed = parameters * (checkpoints * 4 * (3 + averages) + 2 * averages * 4)
    free = shutil.disk_usage(folder).free
    if free < needed:
        key = "save_folder" if place.is_local else "scratch_folder"
        raise RunError(
            f"{key} {folder}: has {free / 1e9:.1f} GB free, but {checkpoints} checkpoints and two moments' snapshots "
            f"need {needed / 1e9:.1f} GB; make room, lower checkpoints.keep, or choose another {key}"
        )
