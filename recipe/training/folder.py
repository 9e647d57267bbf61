"""The folder of a run: what goes there is first a local file, and if the run is kept in object storage, an upload.

config.yaml  owner.json  checkpoints/  snapshots/  samples/  tensorboard/
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from recipe.command_line import UserError
from recipe.configuration.schema import Config
from recipe.storage.fetching import fetch_files
from recipe.storage.places import Place
from recipe.storage.uploads import Uploads
from recipe.weights.checkpoints import Checkpoint

MARK = ".edm2-scratch.json"
PROGRESS = "progress.txt"  # name of the newest checkpoint that was stored, also after someone else deleted it


class ScratchError(UserError):
    """A scratch folder that is not this run's to empty; the message says whose it is."""


class RunFolder:
    """One rank's hold of the run's folder.

    Attributes:
        place: where everything ends up.
        local: folder on this machine that files are written to first, as `local_folder` says.
        uploads: what is under way from one to the other.
    """

    def __init__(self, place: Place, local: Path):
        self.place = place
        self.local = local
        self.uploads = Uploads()

    def keep(self, name: str) -> None:
        """Have the finished file `local / name` stored, after everything handed in before, and then deleted here."""
        if not self.place.is_local:
            self.uploads.submit(lambda: self.store(name))

    def store(self, name: str) -> None:
        """Store the finished file now and delete it here: what a job in `uploads` does."""
        if not self.place.is_local:
            self.place.upload(name, self.local / name)
            (self.local / name).unlink()

    def keep_beginning(self, name: str, size: int) -> None:
        """Have the first `size` bytes of a file that still grows stored, in place of what was stored of it before."""

        def store() -> None:
            beginning = self.local / f"{name}.stored"  # because an upload refuses a file that changes
            with open(self.local / name, "rb") as source, open(beginning, "wb") as target:
                left = size
                while left > 0 and (data := source.read(min(left, 1 << 20))):
                    target.write(data)
                    left -= len(data)
            self.place.upload(name, beginning)
            beginning.unlink()

        if not self.place.is_local:
            self.uploads.submit(store)

    def forget(self, name: str) -> None:
        """Delete the local copy of what is stored: a file or a folder."""
        if not self.place.is_local:
            shutil.rmtree(self.local / name, ignore_errors=True)
            (self.local / name).unlink(missing_ok=True)

    def empty_scratch(self) -> None:
        """Delete what a killed run left on this machine; for one rank of each machine, before anything is written.

        Raises:
            ScratchError: as check_scratch.
        """
        if self.place.is_local:
            return
        check_scratch(self.local, self.place.address)
        for path in self.local.iterdir() if self.local.is_dir() else ():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != MARK:
                path.unlink(missing_ok=True)
        take_scratch(self.local, self.place.address)


def check_scratch(folder: Path, address: str) -> None:
    """Raises ScratchError unless a folder for a run's files is missing, empty, or was made for the run at `address`."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise ScratchError(f"scratch_folder: {folder} is a file; choose another scratch_folder") from None
    if not names or (folder == _own_scratch(address, folder.name[:-9]) and not folder.is_symlink()):
        return
    try:
        owner = json.loads((folder / MARK).read_bytes())["save_folder"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ScratchError(
            f"scratch_folder: {folder} holds files that no run put there, such as {names[0]}, and a run empties it; "
            "choose another scratch_folder or run_name, or move them away"
        ) from None
    if owner != address:
        raise ScratchError(
            f"scratch_folder: {folder} holds the files of the run in {owner}, and a run empties it; choose another "
            "scratch_folder or run_name, or delete it if that run is over"
        )


def take_scratch(folder: Path, address: str) -> None:
    """Make a folder for the files of the run at `address`, and note in it whose it is, if it is empty."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not any(folder.iterdir()):
        (folder / MARK).write_text(json.dumps({"save_folder": address}))


def local_folder(config: Config, place: Place) -> Path:
    """The folder on this machine that a run at `place` writes its files to first: that place itself if it is local."""
    return Path(config.run_folder()) if place.is_local else scratch_folder(config)


def scratch_folder(config: Config) -> Path:
    """Where a run in object storage keeps its files before they are uploaded: one folder per run and user.

    The user is a number, because a container's user need not have a name.
    """
    if config.scratch_folder is not None:
        return Path(config.scratch_folder) / config.run_name
    return _own_scratch(config.run_folder(), config.run_name)


def _own_scratch(address: str, run_name: str) -> Path:
    """The folder that a run makes if it is given none; its name says enough, where a run has left no mark in it."""
    key = hashlib.sha256(address.encode()).hexdigest()[:8]
    return Path(tempfile.gettempdir()) / f"edm2-{os.getuid()}" / f"{run_name}-{key}"


def localise(place: Place, checkpoint: Checkpoint, folder: Path) -> None:
    """Fetch a checkpoint of the run at `place` to `folder`, under the same names."""
    fetch_files(place, [f"checkpoints/{entry.name}" for entry in checkpoint.files], folder)
