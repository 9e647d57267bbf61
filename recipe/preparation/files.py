"""Pictures that are files: below a folder, in a ZIP, or in a tar. Archives are read in memory, never extracted."""

import abc
import bz2
import gzip
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from recipe.preparation import labels
from recipe.preparation.items import LARGEST_FILE, Item, ItemError, PreparationError, Source, shown

DATASET_JSON = "dataset.json"
ZIP_LOCAL_HEADER = 30  # bytes before the name


class FileSource(Source):
    """Files by name, sorted, with "/" between parts. Hidden ones are not looked at.

    Args:
        where: the source, for messages.
        sizes: bytes of each file, by name.
        label_file: gives the labels; None = `dataset.json` of the source if there is one, else class folders.
        ordered: `sizes` is in the order to keep.

    Raises:
        PreparationError: no files, or labels that do not fit them.
    """

    def __init__(self, where: str, sizes: Mapping[str, int], label_file: Path | None, ordered: bool = False):
        names = [name for name in sizes if not _is_hidden(name)]
        names = names if ordered else sorted(names)
        training = labels.imagenet_training_files(names)
        if training is not None:
            self.remarks = [f"{where} has ImageNet's layout: only train/ is used"]
            names = training
        pictures = [name for name in names if name != DATASET_JSON]
        if not pictures:
            raise PreparationError(f"{where}: holds no files; name a folder or an archive of images")
        if label_file is not None:
            ids, self.class_names = labels.from_file(label_file, pictures)
        elif len(pictures) < len(names):
            described = self.read_file(DATASET_JSON)
            ids, self.class_names = labels.from_dataset_json(described, pictures, f"{where}/{DATASET_JSON}")
        else:
            ids, self.class_names = labels.from_folders(pictures)
        self.items = [Item(name, sizes[name], label) for name, label in zip(pictures, ids, strict=True)]

    def read(self, index: int) -> bytes:
        item = self.items[index]
        if item.size > LARGEST_FILE:
            raise ItemError(f"has {item.size} bytes, more than the {LARGEST_FILE} that an image may have")
        return self.read_file(item.name)

    @abc.abstractmethod
    def read_file(self, name: str) -> bytes:
        """Contents of one file. Raises ItemError."""


class FolderSource(FileSource):
    """Files below a folder; links to files and folders are followed."""

    def __init__(self, folder: Path, label_file: Path | None):
        self.folder = folder
        sizes = dict(_walk(folder, "", (os.path.realpath(folder),)))
        if label_file is not None and label_file.resolve().is_relative_to(folder.resolve()):
            sizes.pop(label_file.resolve().relative_to(folder.resolve()).as_posix(), None)
        super().__init__(str(folder), sizes, label_file)

    def read_file(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise ItemError(f"cannot be read ({error.strerror})") from None


def _walk(folder: Path, prefix: str, parents: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    try:
        entries = list(os.scandir(folder / prefix))
    except OSError as error:
        raise PreparationError(f"{folder / prefix}: cannot be listed ({error.strerror}); check it") from None
    for entry in entries:
        name = prefix + entry.name
        if not entry.is_dir():
            try:
                yield name, entry.stat().st_size
            except OSError:
                yield name, 0  # a link to nowhere, which reading it will tell
        elif not _is_hidden(name):
            real = os.path.realpath(entry.path)
            if real in parents:
                raise PreparationError(f"{shown(entry.path)}: is a link to a folder that holds it; remove the link")
            yield from _walk(folder, f"{name}/", (*parents, real))


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


def _is_hidden(name: str) -> bool:
    return any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in name.split("/"))
