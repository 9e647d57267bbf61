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

ZIP_LOCAL_HEADER = 30  # bytes before the name


class ZipSource(FileSource):
    """Files of a ZIP, stored or deflated, read at their places without a shared file position."""

    def __init__(self, path: Path, label_file: Path | None):
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                found = [entry for entry in archive.infolist() if not entry.is_dir()]
        except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
            raise PreparationError(f"{path}: is not a whole ZIP file ({error}); copy it again") from None
        self.entries = {entry.filename: _zip_entry(entry) for entry in found}
        super().__init__(str(path), {entry.filename: entry.file_size for entry in found}, label_file)

    def read_file(self, name: str) -> bytes:
        offset, stored, size, method, checksum, encrypted = self.entries[name]
        if encrypted:
            raise ItemError("is encrypted")
        if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ItemError(f"is compressed by method {method}; only stored and deflated files can be read")
        with open(self.path, "rb") as file:
            file.seek(offset)
            header = file.read(ZIP_LOCAL_HEADER)
            file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), os.SEEK_CUR)
            data = file.read(stored)
        if method == zipfile.ZIP_DEFLATED:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
            except zlib.error:
                raise ItemError("is damaged in the ZIP (cannot be decompressed)") from None
        if len(data) != size or zlib.crc32(data) != checksum:
            raise ItemError("is damaged in the ZIP (size or checksum differs)")
        return data


def _zip_entry(entry: zipfile.ZipInfo) -> tuple[int, int, int, int, int, bool]:
    encrypted = bool(entry.flag_bits & 1)
    return (
        entry.header_offset, entry.compress_size, entry.file_size, entry.compress_type, entry.CRC, encrypted
    )  # fmt: skip


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
