"""Brings files of a run to this machine: several at once, going on where an earlier try stopped, checked at the end."""

import concurrent.futures
import contextlib
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from recipe.storage.files import file_sha256, named_errors
from recipe.storage.places import FileInfo, MissingError, Place, StorageError

PIECE = 16 * 2**20  # bytes of one request
PART = ".part"  # ends the names of files that are not whole yet

Progress = Callable[[int], object]
"""Takes the number of bytes that have come, or were there already."""

Check = Callable[[Path, str], bool]
"""Whether the file at a path, to be called by that name, is whole; asked where the store holds no checksum of it."""


def fetch_files(
    place: Place,
    names: Sequence[str],
    folder: Path,
    jobs: int = 8,
    progress: Progress = lambda count: None,
    passes: Check = lambda path, name: True,
) -> list[Path]:
    """Copy the files `names` of `place` to `folder`, under the same names; returns their paths.

    A whole file that is there already is kept. A partial one is completed if it is of the same version.

    Raises:
        StorageError: a file that cannot be had, or that fails its checksum; the whole ones stay.
    """
    given_up = threading.Event()

    def report(count: int) -> None:
        if given_up.is_set():  # another file failed: what has come of this one stays for the next try
            raise StorageError(f"{place.describe()}: fetching was given up")
        progress(count)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(_fetch, place, name, folder / name, report, passes) for name in names]
        try:
            return [future.result() for future in concurrent.futures.as_completed(futures)]
        except BaseException:
            given_up.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextlib.contextmanager
def at_hand(place: Place, name: str) -> Iterator[Path]:
    """A file on this machine: itself, or a copy for a while. Raises StorageError if an object cannot be had."""
    if place.is_local:
        path = Path(place.address, name)
        with named_errors(path, "be read"), open(path, "rb"):  # libraries call what they may not read missing
            pass
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield fetch_files(place, [name], Path(folder), 1)[0]


def _fetch(place: Place, name: str, path: Path, progress: Progress, passes: Check) -> Path:
    info = place.info(name)
    if info is None:
        raise MissingError(f"{place.describe(name)}: is not there any more; list the folder again")
    if path.is_file() and path.stat().st_size == info.size and _is_intact(path, name, info, passes):
        progress(info.size)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with _partial(path, info) as part:
        progress(part.have)
        with open(part.path, "ab") as file:
            while part.have < info.size:
                data = place.read(name, part.have, min(PIECE, info.size - part.have), version=info.version)
                file.write(data)
                part.have += len(data)
                progress(len(data))
            file.flush()
            os.fsync(file.fileno())
        if not _is_intact(part.path, name, info, passes):
            part.forget()
            raise StorageError(
                f"{place.describe(name)}: its checksum does not match, it was damaged in the store or on the way; "
                "nothing of it is kept: fetch again, and if it fails again use another snapshot or checkpoint"
            )
        os.replace(part.path, path)
    return path


@dataclass
class _Part:
    path: Path
    note: Path
    have: int

    def forget(self) -> None:
        self.path.unlink()
        self.note.unlink()


@contextlib.contextmanager
def _partial(path: Path, info: FileInfo) -> Iterator[_Part]:
    """The file that collects what has come; begun anew if the source is another version than last time."""
    part, note = path.with_name(path.name + PART), path.with_name(f".{path.name}{PART}.json")
    version = json.dumps({"version": info.version, "size": info.size})
    if not (part.is_file() and note.is_file() and note.read_text() == version and part.stat().st_size <= info.size):
        part.write_bytes(b"")
        note.write_text(version)
    yield _Part(part, note, part.stat().st_size)
    note.unlink()


def _is_intact(path: Path, name: str, info: FileInfo, passes: Check) -> bool:
    return passes(path, name) if info.sha256 is None else file_sha256(path) == info.sha256
