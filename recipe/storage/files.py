"""Local files, written whole or not at all, and their digests."""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from recipe.storage.places import TEMPORARY, AccessError, MissingError, StorageError


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's contents in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def named_errors(path: Path, what: str) -> Iterator[None]:
    """Turn OSError into the errors of places."""
    try:
        yield
    except FileNotFoundError as error:
        raise MissingError(f"{error.filename or path}: no such file or folder; check the path") from None
    except PermissionError as error:
        raise AccessError(f"{error.filename or path}: may not {what} by this user; change its permissions") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(f"{error.filename or path}: cannot {what} ({reason}); check the path and the disk") from None


@contextlib.contextmanager
def _written(path: Path, fill: Callable[[Path], object]) -> Iterator[Path]:
    """A temporary file beside `path`, filled and on disk; removed at the end unless it was renamed."""
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}-{path.name}"[:255])
    with named_errors(path, "be written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            fill(temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            yield temporary
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
