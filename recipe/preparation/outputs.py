"""Where shards go: a folder that appears whole, or a prefix in S3 whose index comes last. Both keep finished chunks."""

import abc
import fcntl
import io
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recipe.data.facts import DataError, DataFacts
from recipe.data.index import INDEX, LABELS, SKIPPED, STATISTICS, Shard, facts_at, stored_file
from recipe.preparation.chunks import Chunk, Note
from recipe.preparation.sources.items import PreparationError
from recipe.storage.addresses import is_remote, open_place
from recipe.storage.local import LocalPlace
from recipe.storage.places import PROBE, Place

NOTES = "unfinished"  # folder with one note per finished chunk, until all are
LOCK = "lock"
SHARD = re.compile(r"shard\.\d{5,}(-\d+)?\.mds(\.\w+)?")
OURS = re.compile(
    rf"{SHARD.pattern}|{NOTES}/\d+\.json|index\.json|stats\.json|labels\.npy|skipped\.json|{re.escape(PROBE)}\w+"
)
SCRATCH = re.compile(r"scratch-\d+/")
READERS = 16  # threads
LOCK_SECONDS = 5  # that an interrupted run's workers may take to end


@dataclass(frozen=True)
class Finished:
    """A data set whose shards are all written.

    Attributes:
        shards: the index's entries.
        facts: what stats.json is to say.
        labels: class of each sample [N].
        skipped: reason by name of each item that was left out.
    """

    shards: Sequence[Shard]
    facts: DataFacts
    labels: NDArray[np.int64]
    skipped: Mapping[str, str]


class Output(abc.ABC):
    """The place of the shards while they are made.

    Attributes:
        place: where files of finished chunks are.
        scratch: a local folder for what is being written; only one process tree holds it, by a lock.
    """

    place: Place
    scratch: Path

    def __init__(self, address: str):
        self.address = address

    def begin(self) -> None:
        """Take the scratch folder. Raises PreparationError if another live process has it, or StorageError."""
        self.scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.scratch.stat().st_uid != os.getuid():
            raise PreparationError(f"{self.scratch}: belongs to another user; set TMPDIR to a folder of your own")
        self._lock = os.open(self.scratch / LOCK, os.O_RDWR | os.O_CREAT, 0o600)  # held by workers too, till they end
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise PreparationError(
                        f"--out {self.address}: another prepare.py is writing there; wait for it or name another place"
                    ) from None
                time.sleep(0.1)
        if not (self.scratch / LOCK).exists():
            raise PreparationError(f"--out {self.address}: another prepare.py has just finished there; see its work")
        for left in self.scratch.iterdir():
            if left.name != LOCK:
                shutil.rmtree(left)

    def end(self) -> None:
        """Let another process have the place."""
        os.close(self._lock)

    def leave(self) -> None:
        """Remove what only this rank needs; the first one completes the data set."""
        shutil.rmtree(self.scratch)

    @abc.abstractmethod
    def existing(self) -> DataFacts | None:
        """The facts of a data set that is there, which say nothing unless it is whole; None if nothing is there.

        Raises:
            PreparationError: something else is there, which is never overwritten.
        """

    @abc.abstractmethod
    def is_source(self, source: str) -> bool:
        """Whether a source, as the user names it, is this very place."""

    @abc.abstractmethod
    def discard(self) -> None:
        """Give the complete data set up that is there, at once or at the end."""

    def finished(self, chunks: Sequence[Chunk], rank: int = 0, ranks: int = 1) -> dict[int, Note]:
        """Notes of chunks that an interrupted run left whole; notes of others are deleted.

        Args:
            rank, ranks: only every `ranks`-th chunk from `rank` on is this process's to judge.
        """
        sizes = {entry.name: entry.size for entry in self.place.list()}
        wanted = {f"{NOTES}/{chunk.number:05}.json": chunk for chunk in chunks}
        found, stale = {}, []
        names = [name for name in sizes if name.startswith(f"{NOTES}/") and int(Path(name).stem) % ranks == rank]
        with ThreadPoolExecutor(READERS) as pool:
            for name, note in zip(names, pool.map(self._note, names), strict=True):
                chunk = wanted.get(name)
                if chunk is not None and note.get("key") == chunk.key and _whole(note, sizes):
                    found[chunk.number] = note
                else:
                    stale.append(name)
        self.place.delete(stale)  # before their shards are replaced, so that no note fits other shards
        return found

    def _note(self, name: str) -> Note:
        try:
            return json.loads(self.place.read(name))
        except ValueError:
            return {}

    def keep(self, chunk: Chunk, folder: Path, note: Note) -> None:
        """Move the files of a chunk from the scratch folder to the place, and note that they are there."""
        for entry in note["shards"]:
            name = stored_file(entry)["basename"]
            self._move(folder / name, name)
        shutil.rmtree(folder)
        self.place.write(f"{NOTES}/{chunk.number:05}.json", json.dumps(note).encode())

    @abc.abstractmethod
    def _move(self, path: Path, name: str) -> None:
        """Move a local file to the place, all or nothing."""

    def finish(self, finished: Finished) -> None:
        """Make the data set complete: labels and facts, then the index, then everything else goes."""
        names = {stored_file(shard)["basename"] for shard in finished.shards}
        stale = [e.name for e in self.place.list("shard.") if SHARD.fullmatch(e.name) and e.name not in names]
        self.place.delete(stale if finished.skipped else [*stale, SKIPPED])
        if finished.skipped:
            skipped = json.dumps(finished.skipped, indent=2, ensure_ascii=False) + "\n"
            self.place.write(SKIPPED, skipped.encode())
        file = io.BytesIO()
        np.save(file, finished.labels, allow_pickle=False)
        self.place.write(LABELS, file.getvalue())
        self.place.write(STATISTICS, finished.facts.text().encode())
        index = {"version": 2, "shards": finished.shards}
        self.place.write(INDEX, json.dumps(index, sort_keys=True).encode())
        self.clear()

    @abc.abstractmethod
    def clear(self) -> None:
        """Remove what only unfinished work needs; a folder gets its name."""


class FolderOutput(Output):
    """Shards are written beside the folder, as `.NAME.partial`, which is renamed at the end."""

    def __init__(self, address: str, rank: int = 0):
        super().__init__(address)
        self.folder = Path(os.path.abspath(address))
        self.partial = self.folder.with_name(f".{self.folder.name}.partial")
        self.place = LocalPlace(self.partial)
        self.scratch = self.partial / f"scratch-{rank}"

    def existing(self) -> DataFacts | None:
        if self.folder.exists() and not self.folder.is_dir():
            raise PreparationError(f"--out {self.address}: is a file; name a folder")
        foreign = [e.name for e in self.place.list() if not OURS.fullmatch(e.name) and not SCRATCH.match(e.name)]
        if foreign:
            raise PreparationError(
                f"--out {self.address}: {self.partial}, where it would be made, holds other files, such as "
                f"{foreign[0]}; move them away, or name another folder"
            )
        if not self.folder.exists() or (self.folder.is_dir() and not any(self.folder.iterdir())):
            return None
        return _facts(LocalPlace(self.folder), self.address)

    def is_source(self, source: str) -> bool:
        return os.path.realpath(source) == os.path.realpath(self.folder)

    def discard(self) -> None:
        pass  # it stays until the new one is whole

    def _move(self, path: Path, name: str) -> None:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        os.replace(path, self.partial / name)

    def clear(self) -> None:
        if not (self.partial / INDEX).is_file():
            shutil.rmtree(self.partial)  # the folder itself is complete
            return
        shutil.rmtree(self.partial / NOTES, ignore_errors=True)
        for left in self.partial.glob("scratch-*"):  # also those of an interrupted launch with more ranks
            shutil.rmtree(left)
        old = self.folder.with_name(f".{self.folder.name}.old-{secrets.token_hex(8)}")  # a name that nobody has
        if self.folder.exists():
            os.rename(self.folder, old)
        os.rename(self.partial, self.folder)
        shutil.rmtree(old, ignore_errors=True)


class RemoteOutput(Output):
    """Shards are uploaded one by one; the local scratch holds no more than those being written."""

    def __init__(self, address: str, rank: int = 0):
        super().__init__(address)
        self.place = open_place(address)
        name = f"edm2-prepare-{os.getuid()}-{sha256(self.place.address.encode()).hexdigest()[:16]}-{rank}"
        self.scratch = Path(tempfile.gettempdir()) / name

    def begin(self) -> None:
        self.place.check_access()
        super().begin()

    def existing(self) -> DataFacts | None:
        names = {entry.name for entry in self.place.list()}
        if INDEX not in names and all(OURS.fullmatch(name) for name in names):
            return None
        return _facts(self.place, self.address)

    def is_source(self, source: str) -> bool:
        return is_remote(source) and open_place(source).address == self.place.address

    def discard(self) -> None:
        names = [entry.name for entry in self.place.list()]
        self.place.delete([INDEX])  # first: from now on it is not complete
        self.place.delete(names)

    def _move(self, path: Path, name: str) -> None:
        self.place.upload(name, path)

    def clear(self) -> None:
        # Also what a kill left while access was tried.
        self.place.delete([entry.name for start in (f"{NOTES}/", PROBE) for entry in self.place.list(start)])
        shutil.rmtree(self.scratch, ignore_errors=True)


def open_output(address: str, rank: int = 0) -> Output:
    """The output at a local path or s3://bucket/prefix, for one of several ranks that write there together.

    Raises:
        StorageError: another scheme.
    """
    return RemoteOutput(address, rank) if is_remote(address) else FolderOutput(address, rank)


def _whole(note: Note, sizes: dict[str, int]) -> bool:
    files = [stored_file(entry) for entry in note["shards"]]
    return all(sizes.get(file["basename"]) == file["bytes"] for file in files)


def _facts(place: Place, address: str) -> DataFacts:
    """The facts of the data set at a place, which say nothing if they are missing or damaged.

    Raises:
        PreparationError: the place holds other files than a data set.
    """
    foreign = [entry.name for entry in place.list() if not OURS.fullmatch(entry.name)]
    if foreign:
        raise PreparationError(
            f"--out {address}: holds other files, such as {foreign[0]}, which are never overwritten; name another place"
        )
    try:
        found = facts_at(place) if place.size(INDEX) is not None else None
    except DataError:
        found = None
    return found or DataFacts()
