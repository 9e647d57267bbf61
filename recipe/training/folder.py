"""The folder of a run: what goes there is first a local file, and if the run is kept in object storage, an upload.

config.yaml  owner.json  checkpoints/  snapshots/  samples/  tensorboard/
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from recipe.configuration.schema import Config
from recipe.storage.fetching import fetch_files
from recipe.storage.places import Place
from recipe.storage.uploads import Uploads
from recipe.weights.checkpoints import Checkpoint

PROGRESS = "progress.txt"  # name of the newest checkpoint that was stored, also after someone else deleted it


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
        """Delete what a killed run left on this machine; for one rank of each machine, before anything is written."""
        if not self.place.is_local:
            shutil.rmtree(self.local, ignore_errors=True)
            self.local.mkdir(parents=True, mode=0o700)


def local_folder(config: Config, place: Place) -> Path:
    """The folder on this machine that a run at `place` writes its files to first: that place itself if it is local."""
    return Path(config.run_folder()) if place.is_local else scratch_folder(config)


def scratch_folder(config: Config) -> Path:
    """Where a run in object storage keeps its files before they are uploaded: one folder per run and user.

    The user is a number, because a container's user need not have a name.
    """
    if config.scratch_folder is not None:
        return Path(config.scratch_folder) / config.run_name
    key = hashlib.sha256(config.run_folder().encode()).hexdigest()[:8]
    return Path(tempfile.gettempdir()) / f"edm2-{os.getuid()}" / f"{config.run_name}-{key}"


def localise(place: Place, checkpoint: Checkpoint, folder: Path) -> None:
    """Fetch a checkpoint of the run at `place` to `folder`, under the same names."""
    fetch_files(place, [f"checkpoints/{entry.name}" for entry in checkpoint.files], folder)
