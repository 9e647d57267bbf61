"""Which folder an address names: a local path, or `s3://bucket/prefix`."""

import re
from pathlib import Path

from recipe.storage.places import Place, StorageError

_S3 = re.compile(
    r"s3:/{1,2}(?!/)(?P<bucket>[^/]*)/?(?P<prefix>.*)"
)  # one slash: pathlib.Path("s3://b") drops the other
_SCHEME = re.compile(r"[a-zA-Z][\w+.-]+:/.*")


def is_remote(address: str | Path) -> bool:
    """Whether an address names an object store, for example s3://bucket/run, rather than a local path."""
    return _SCHEME.fullmatch(str(address)) is not None


def open_place(address: str | Path) -> Place:
    """The folder at `s3://bucket/prefix` or at a local path. Nothing is read yet.

    Raises:
        StorageError: another scheme, or an address without a bucket.
    """
    text = str(address)
    if not is_remote(text):
        from recipe.storage.local import LocalPlace

        return LocalPlace(Path(text))
    match = _S3.fullmatch(text)
    if match is None or not match["bucket"]:
        raise StorageError(f"{text}: is not a folder that can be used; give a local path or s3://bucket/prefix")
    from recipe.storage.s3 import S3Place  # boto3 takes a while to import

    return S3Place(match["bucket"], match["prefix"].strip("/"))


def is_taken(address: str | Path) -> bool:
    """Whether something is there: an object, or on this machine a file, a folder or a link, also to nowhere.

    Raises:
        StorageError: as split_address, or a place that cannot be read.
    """
    if is_remote(address):
        place, name = split_address(address)
        return place.size(name) is not None
    return Path(address).exists() or Path(address).is_symlink()


def split_address(address: str | Path) -> tuple[Place, str]:
    """The place of a file's folder, and the file's name in it.

    Raises:
        StorageError: as open_place, or an address that names no file.
    """
    text = str(address)
    if not is_remote(text):
        return open_place(Path(text).parent), Path(text).name
    folder, _, name = text.rpartition("/")
    if not name or folder.rstrip("/") == "s3:":
        raise StorageError(f"{text}: is not the address of a file; give s3://bucket/prefix/name")
    return open_place(folder), name
