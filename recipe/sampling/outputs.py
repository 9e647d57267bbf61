"""The pictures of seeds in a folder, local or in object storage: which are there, and writing those that are missing.

Each picture says in its PNG which settings and label it was drawn by, so that nothing else needs to be kept: a picture
counts as drawn if it says the same as is asked for. A file `.settings.json` beside them is for people, and for saying
what differs. Files appear whole, by the rename of a temporary one.
"""

import contextlib
import json
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from recipe.sampling.distributed import Wanted
from recipe.sampling.pictures import as_image
from recipe.sampling.settings import DrawnBy, differences, settings_digest
from recipe.storage.addresses import open_place
from recipe.storage.own_pictures import encoded, not_own, notes_at
from recipe.storage.places import TEMPORARY, Entry, StorageError

SETTINGS = ".settings.json"
FORMAT = "edm2-recipe samples"  # key of this file, by which it is known
SUBDIR = 1000  # seeds of a subfolder
LOOKERS = 16  # threads that look at what is there
WAITING = 1000  # names that wait for them
FIX = "name another place, or add --overwrite"

T = TypeVar("T")
R = TypeVar("R")


def picture_name(seed: int, subdirs: bool) -> str:
    """The file of a seed: 000123.png, or 000000/000123.png with a folder for each 1000 seeds."""
    return f"{seed - seed % SUBDIR:06d}/{seed:06d}.png" if subdirs else f"{seed:06d}.png"


class PictureFolder:
    """A folder of pictures SEED.png. Usable from several threads.

    Args:
        address: a local path or s3://bucket/prefix.
        subdirs: a subfolder for each 1000 seeds.
        settings: that the pictures are drawn by.
    """

    def __init__(self, address: str, subdirs: bool, settings: DrawnBy):
        self.place = open_place(address)
        self.subdirs = subdirs
        self.settings = settings
        self.digest = settings_digest(settings)

    def name(self, each: Wanted) -> str:
        return picture_name(each.seed, self.subdirs)

    def missing(self, wanted: Sequence[Wanted], overwrite: bool) -> list[Wanted]:
        """Those that are not there by these settings. Changes nothing.

        Raises:
            StorageError: without `overwrite`, a picture of other settings or of somebody else; a folder in its place.
        """
        sizes = self._sizes(wanted)
        there = [each for each in wanted if self.name(each) in sizes]
        if not overwrite:
            self._compare_settings()
        drawn = set(_in_threads(lambda each: self._drawn(each, sizes[self.name(each)], overwrite), there))
        return [each for each in wanted if each.seed not in drawn]

    def _drawn(self, each: Wanted, size: int, overwrite: bool) -> int | None:
        """The seed if its picture is the one asked for, None if it is to be drawn (again)."""
        name = self.name(each)
        notes = notes_at(self.place, name, size)
        if notes is None and not overwrite:
            raise not_own(self.place.describe(name))
        if notes is None or "Settings" not in notes:  # of an earlier version of this command
            return None
        asked = {"Settings": self.digest, "Label": str(each.label)}
        there = {key: notes.get(key, "none") for key in asked}
        if there == asked:
            return each.seed
        if not overwrite:
            raise StorageError(f"{self.place.describe(name)}: was drawn otherwise ({differences(there, asked)}); {FIX}")
        return None

    def _sizes(self, wanted: Iterable[Wanted]) -> dict[str, int]:
        """Bytes of the pictures that are there, by name. Raises StorageError for a folder in a picture's place."""
        if not self.place.is_local:
            return {entry.name: entry.size for entry in self.place.list()}
        sizes = {}
        for name in map(self.name, wanted):  # and not a listing: much else may lie in the folder
            path = Path(self.place.address, name)
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                found = path.stat()
                if stat.S_ISDIR(found.st_mode):
                    raise StorageError(f"{path}: is a folder, where a picture is to go; name another place")
                sizes[name] = found.st_size
        return sizes

    def _compare_settings(self) -> DrawnBy | None:
        """The settings that the folder was begun with; None if it is new. Raises StorageError if they are others."""
        if self.place.size(SETTINGS) is None:
            return None
        where = self.place.describe(SETTINGS)
        try:
            there = json.loads(self.place.read(SETTINGS))[FORMAT]
        except (ValueError, KeyError, TypeError):
            raise not_own(where) from None
        if there != self.settings:
            other = differences(there, self.settings)
            raise StorageError(f"{self.place.describe()}: holds pictures of other settings ({other}); {FIX}")
        return there

    def begin(self, overwrite: bool) -> None:
        """Note the settings. Only rank 0 does, after `missing`. Raises StorageError."""
        if overwrite or self._compare_settings() is None:
            self.place.write(SETTINGS, (json.dumps({FORMAT: self.settings}, indent=2) + "\n").encode())

    def write(self, each: Wanted, pixels: Tensor) -> None:
        """Store a picture, uint8 [C, H, W]; its bytes depend on pixels, settings and label alone."""
        notes = {"Settings": self.digest, "Label": str(each.label)}
        self.place.write(self.name(each), encoded(as_image(pixels.permute(1, 2, 0)), ".png", notes))

    def read(self, each: Wanted) -> bytes:
        """The PNG of a picture that is there."""
        return self.place.read(self.name(each))

    def clear(self) -> None:
        """Delete our pictures, of any seed and settings, the note of the settings, and the folder if nothing is left.

        For the folder in which an archive's pictures wait, which this command alone uses.
        """
        entries = self.place.list()
        ours = [entry.name for entry in entries if entry.name == SETTINGS]
        ours += [name for name in _in_threads(self._own, entries) if name is not None]
        self.place.delete(ours)
        if self.place.is_local:
            _remove_empty(Path(self.place.address))

    def _own(self, entry: Entry) -> str | None:
        if not re.fullmatch(r"(\d{6,}/)?\d{6,}\.png", entry.name):
            return None
        return entry.name if "Settings" in (notes_at(self.place, entry.name, entry.size) or {}) else None

    def sweep(self, wanted: Iterable[Wanted], before: float) -> None:
        """Delete the temporary files that killed processes left where pictures go before a Unix time."""
        if self.place.is_local:
            folder = Path(self.place.address)
            for parent in {folder} | {(folder / self.name(each)).parent for each in wanted}:
                sweep(parent, rf"\d{{6,}}\.png|{re.escape(SETTINGS)}", before)


def _in_threads(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """The function's results in order; not all at once, since what waits for a thread needs memory."""
    with ThreadPoolExecutor(LOOKERS) as pool:
        for start in range(0, len(items), WAITING):
            yield from pool.map(function, items[start : start + WAITING])


def sweep(folder: Path, names: str, before: float) -> None:
    """Delete the temporary files of a folder that were to be called as a pattern says, and are older than a time."""
    pattern = re.compile(rf"{re.escape(TEMPORARY)}[0-9a-f]{{16}}-({names})")
    for path in folder.glob(f"{TEMPORARY}*"):
        if pattern.fullmatch(path.name):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < before:
                    path.unlink()


def _remove_empty(folder: Path) -> None:
    """Remove a folder's empty subfolders of seeds, and itself if nothing else is in it."""
    for path in [*folder.glob("[0-9]*/"), folder]:
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
