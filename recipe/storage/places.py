"""Folders, local or under `s3://bucket/prefix`, behind one interface; what appears in them is whole.

    place = open_place("s3://bucket/runs/edm2")          # or a path
    for entry in place.list("snapshots/"): ...

Names are relative to the place, with "/" between parts. Every operation raises a StorageError of one line that names
the address, what failed and the fix. Temporary files are called `.tmp-...` and are never listed.
"""

import abc
import re
import secrets
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from recipe.command_line import UserError

PROBE = ".probe-"  # start of the names that check_access writes and deletes
TEMPORARY = ".tmp-"


class StorageError(UserError):
    """A place that cannot be used as asked; the message names endpoint, bucket and key, or the path, and the fix."""


class AccessError(StorageError):
    """Credentials that are missing, unknown, wrong or expired, or that do not permit the operation."""


class ExpiredKeysError(AccessError):
    """Credentials that were good for a while, and have no successors yet."""


class MissingError(StorageError):
    """A bucket, a folder or an object that does not exist."""


class ChangedError(StorageError):
    """An object that is no longer the version that was asked for."""


@dataclass(frozen=True, order=True)
class Entry:
    """A file as a listing describes it.

    Attributes:
        name: relative to the place, "/" between parts.
        size: bytes.
        modified: Unix time in seconds; by the server's clock on S3.
    """

    name: str
    size: int
    modified: float


@dataclass(frozen=True)
class FileInfo:
    """One file in detail.

    Attributes:
        size: bytes.
        version: changes with the contents.
        modified: as in Entry.
        sha256: of the contents in hexadecimal, which `upload` stored beside the file; None if none is known.
    """

    size: int
    version: str
    modified: float
    sha256: str | None


def is_temporary(name: str) -> bool:
    return any(part.startswith(TEMPORARY) for part in name.split("/"))


def is_inside(name: str) -> bool:
    """Whether a name stays below its place: no empty part, no "..", no drive, no NUL."""
    return all(part not in ("", ".", "..") for part in name.split("/")) and not re.search(r"[\\\0]", name)


class Place(abc.ABC):
    """A folder. Usable from several threads, picklable, and usable on both sides of a fork."""

    address: str
    is_local: bool

    @abc.abstractmethod
    def list(self, prefix: str = "") -> "list[Entry]":
        """All files, at any depth, whose names start with `prefix`, by name; [] if the folder does not exist."""

    @abc.abstractmethod
    def info(self, name: str) -> FileInfo | None:
        """Size, version and checksum; None if there is no such file."""

    def size(self, name: str) -> int | None:
        """Bytes; None if there is no such file."""
        found = self.info(name)
        return None if found is None else found.size

    def sha256(self, name: str) -> str | None:
        """The SHA-256 in hexadecimal that `upload` stored beside the file; None if unknown, as for all local files."""
        found = self.info(name)
        return None if found is None else found.sha256

    @abc.abstractmethod
    def read(self, name: str, start: int = 0, length: int | None = None, version: str | None = None) -> bytes:
        """`length` bytes from byte `start` on; None = to the end. Never fewer.

        Raises:
            MissingError: no such file.
            ChangedError: the file is not `version` (as in FileInfo; None = any).
            StorageError: the file ends before.
        """

    @abc.abstractmethod
    def read_versioned(self, name: str) -> tuple[bytes, str, float, float] | None:
        """Contents, version, time of the last change and time now, both by the clock of the server; None if missing."""

    @abc.abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Create or replace a file, all or nothing."""

    @abc.abstractmethod
    def write_new(self, name: str, data: bytes) -> bool:
        """Create a file, all or nothing; False, and nothing changed, if it exists. Of several callers one wins."""

    @abc.abstractmethod
    def replace(self, name: str, data: bytes, version: str) -> bool:
        """Replace a file if it still is `version`; False, and nothing changed, if it is another one or missing."""

    @abc.abstractmethod
    def upload(self, name: str, path: Path) -> None:
        """Create or replace a file by a local one, all or nothing, with its SHA-256 beside it on S3."""

    def make(self, name: str, fill: Callable[[Path], object]) -> None:
        """Create or replace a file by what `fill` writes at a local path, all or nothing."""
        with tempfile.TemporaryDirectory() as folder:
            fill(Path(folder, name))
            self.upload(name, Path(folder, name))

    @abc.abstractmethod
    def delete(self, names: Sequence[str]) -> None:
        """Delete files; missing ones are fine."""

    @abc.abstractmethod
    def child(self, name: str) -> "Place":
        """The folder `name` in this one."""

    @abc.abstractmethod
    def describe(self, name: str = "") -> str:
        """The place or a file of it for messages: the path, or the address and the endpoint."""

    def check_access(self, write: bool = True) -> None:
        """Find out whether files can be listed and, if `write`, written and deleted, by a file `.probe-...`.

        Raises:
            AccessError: credentials that are missing, wrong or not sufficient.
            MissingError: no such bucket, or, unless `write`, no such local folder.
            StorageError: the endpoint cannot be reached.
        """
        self._check_listing(write)
        if write:
            name = f"{PROBE}{secrets.token_hex(8)}"
            self.write(name, b"")
            self.delete([name])

    @abc.abstractmethod
    def _check_listing(self, write: bool) -> None:
        """The part of check_access that changes nothing in the folder."""

    def _checked(self, name: str) -> str:
        if not is_inside(name):
            raise StorageError(f"{self.address}: {name!r} is not the name of a file below it; remove '..' and '//'")
        return name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"
