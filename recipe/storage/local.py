"""A local folder as a place: whole files by temporary name, fsync and rename."""

import builtins
import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from recipe.storage.files import _write, _written, named_errors
from recipe.storage.places import TEMPORARY, ChangedError, Entry, FileInfo, Place, StorageError, is_temporary

LOCK = f"{TEMPORARY}lock"
NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)


class LocalPlace(Place):
    """A folder of this machine's file systems; made when something is first written into it.

    The version of a file read by `read_versioned` is the SHA-256 of its contents; that of `info` comes from its size,
    inode and time of change, which cost no reading.
    """

    is_local = True

    def __init__(self, folder: Path):
        self.folder = folder
        self.address = str(folder)

    def list(self, prefix: str = "") -> builtins.list[Entry]:
        base = self.folder / prefix.rpartition("/")[0]
        entries = []
        with named_errors(base, "be listed"):
            for parent, _, files in os.walk(base, onerror=_raise_unless_missing):
                for path in (Path(parent, file) for file in files):
                    name = path.relative_to(self.folder).as_posix()
                    if name.startswith(prefix) and not is_temporary(name):
                        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile, or a link to nowhere
                            found = path.stat()
                            entries.append(Entry(name, found.st_size, found.st_mtime))
        return sorted(entries)

    def info(self, name: str) -> FileInfo | None:
        path = self._path(name)
        with named_errors(path, "be read"):
            try:
                found = path.stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
            if not path.is_file():
                return None
            return FileInfo(found.st_size, _version(found), found.st_mtime, None)

    def read(self, name: str, start: int = 0, length: int | None = None, version: str | None = None) -> bytes:
        path = self._path(name)
        with named_errors(path, "be read"), open(path, "rb") as file:
            found = os.fstat(file.fileno())
            if version is not None and version != _version(found):
                raise ChangedError(f"{path}: has changed since it was looked at; try again")
            end = found.st_size if length is None else start + length
            if not start <= end <= found.st_size:
                raise StorageError(f"{path}: ends at byte {found.st_size}, before byte {end}; fetch or make it again")
            file.seek(start)
            data = file.read(end - start)
            if len(data) != end - start:
                raise StorageError(f"{path}: became shorter while it was read; try again")
            return data

    def read_versioned(self, name: str) -> tuple[bytes, str, float, float] | None:
        path = self._path(name)
        with named_errors(path, "be read"):
            try:
                with open(path, "rb") as file:
                    data = file.read()
                    return data, hashlib.sha256(data).hexdigest(), os.fstat(file.fileno()).st_mtime, time.time()
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        self.make(name, lambda temporary: _write(temporary, data))

    def write_new(self, name: str, data: bytes) -> bool:
        path = self._path(name)
        with _written(path, lambda temporary: _write(temporary, data)) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in NO_HARD_LINKS:
                    raise
                return _write_exclusively(path, data)
        return True

    def replace(self, name: str, data: bytes, version: str) -> bool:
        path = self._path(name)
        with _written(path, lambda temporary: _write(temporary, data)) as temporary, locked(path.parent):
            current = self.read_versioned(name)
            if current is None or current[1] != version:
                return False
            os.replace(temporary, path)
        return True

    def upload(self, name: str, path: Path) -> None:
        self.make(name, lambda temporary: shutil.copyfile(path, temporary))

    def make(self, name: str, fill: Callable[[Path], object]) -> None:
        target = self._path(name)
        with _written(target, fill) as temporary:
            os.replace(temporary, target)

    def delete(self, names: Sequence[str]) -> None:
        for path in map(self._path, names):
            with named_errors(path, "be deleted"), contextlib.suppress(FileNotFoundError):
                path.unlink()

    def child(self, name: str) -> "LocalPlace":
        return LocalPlace(self._path(name))

    def describe(self, name: str = "") -> str:
        return str(self.folder / name)

    def _check_listing(self, write: bool) -> None:
        with named_errors(self.folder, "be written" if write else "be listed"):
            if write:
                self.folder.mkdir(parents=True, exist_ok=True)
            with os.scandir(self.folder) as entries:
                next(entries, None)

    def _path(self, name: str) -> Path:
        return self.folder / self._checked(name)


def _version(found: os.stat_result) -> str:
    return f"{found.st_size}-{found.st_ino}-{found.st_mtime_ns}"


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _write_exclusively(path: Path, data: bytes) -> bool:
    """For file systems without hard links: the name is taken at once, the contents follow."""
    try:
        with open(path, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes that replace files of `folder` out; the system lets go when a process dies."""
    with open(folder / LOCK, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
