"""Pictures in a ZIP or a tar, read in memory, never extracted."""

import bz2
import gzip
import lzma
import os
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

from recipe.preparation.sources.folder import FileSource
from recipe.preparation.sources.items import ItemError, PreparationError

ZIP_ENCRYPTED = 1  # flag of an entry


class ZipSource(FileSource):
    """Files of a ZIP, stored or deflated.

    Its directory is read once and shared with the workers, since that of a million files takes seconds and hundreds of
    megabytes; the open file is each process's own, so that no two move one file position.
    """

    def __init__(self, path: Path, label_file: Path | None):
        self.path = path
        try:
            self.archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
            raise PreparationError(f"{path}: is not a whole ZIP file ({error}); copy it again") from None
        self.process = os.getpid()
        self.entries = {entry.filename: entry for entry in self.archive.infolist() if not entry.is_dir()}
        super().__init__(str(path), {name: entry.file_size for name, entry in self.entries.items()}, label_file)

    def read_file(self, name: str) -> bytes:
        entry = self.entries[name]
        if entry.flag_bits & ZIP_ENCRYPTED:
            raise ItemError("is encrypted")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ItemError(
                f"is compressed by method {entry.compress_type}; only stored and deflated files can be read"
            )
        try:
            with self._own_archive().open(entry) as file:
                data = file.read(entry.file_size)  # with a size, so that a false one makes it unpack no more than that
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError) as error:
            raise ItemError(f"is damaged in the ZIP ({error})") from None
        if len(data) != entry.file_size:
            raise ItemError("is damaged in the ZIP (it is cut short)")
        return data

    def _own_archive(self) -> zipfile.ZipFile:
        if self.process != os.getpid():  # forked since
            assert self.archive.fp is not None
            self.archive.fp.close()
            self.archive.fp = open(self.path, "rb")  # noqa: SIM115
            self.process = os.getpid()
        return self.archive


class TarSource(FileSource):
    """Files of a tar. A compressed one can only be read forwards, so its files keep the order of the archive."""

    def __init__(self, path: Path, label_file: Path | None):
        self.path = path
        self.unpacker = _unpacker(path)
        self.stream: tuple[int, IO[bytes]] | None = None
        try:
            with tarfile.open(path) as archive:
                found = [member for member in archive if not member.isdir()]
        except (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError) as error:
            raise PreparationError(f"{path}: is not a whole tar file ({error}); copy it again") from None
        self.entries = {_plain(member.name): (member.offset_data, member.size, _readable(member)) for member in found}
        ordered = sorted(self.entries, key=lambda name: self.entries[name][0])
        super().__init__(
            str(path), {name: self.entries[name][1] for name in ordered}, label_file, self.unpacker is not None
        )

    def read_file(self, name: str) -> bytes:
        offset, size, readable = self.entries[name]
        if not readable:
            raise ItemError("is not a regular file of the tar")
        try:
            data = self._unpacked(offset, size) if self.unpacker else self._part(offset, size)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise ItemError(f"is damaged in the tar ({error})") from None
        if len(data) != size:
            raise ItemError("is cut short in the tar")
        return data

    def _part(self, offset: int, size: int) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(offset)
            return file.read(size)

    def _unpacked(self, offset: int, size: int) -> bytes:
        """The same after decompression, by a stream that each process has for its own and goes on in."""
        if self.stream is None or self.stream[0] != os.getpid():
            self.stream = (os.getpid(), self.unpacker(self.path, "rb"))
        self.stream[1].seek(offset)
        return self.stream[1].read(size)


def _unpacker(path: Path) -> Any:
    """What opens a compressed tar; None for a plain one."""
    start = b""
    try:
        with open(path, "rb") as file:
            start = file.read(6)
    except OSError as error:
        raise PreparationError(f"{path}: cannot be read ({error.strerror}); check it") from None
    openers = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
    return next((opener for magic, opener in openers.items() if start.startswith(magic)), None)


def _readable(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.issparse()


def _plain(name: str) -> str:
    while name.startswith("./"):
        name = name[2:]
    return name
