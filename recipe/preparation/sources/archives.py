"""Pictures in a ZIP, or in one or several tars, read in memory, never extracted."""

import bz2
import gzip
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from recipe.preparation.sources.folder import FileSource
from recipe.preparation.sources.items import ItemError, PreparationError
from recipe.preparation.sources.layout import SYNSET
from recipe.preparation.sources.sidecars import LABEL_FILES

ZIP_ENCRYPTED = 1  # flag of an entry
BLOCK = tarfile.BLOCKSIZE  # bytes; what a tar's files are padded to


class ZipSource(FileSource):
    """Files of a ZIP, stored or deflated.

    Its directory is read once and shared with the workers, since that of a million files takes seconds and hundreds of
    megabytes; the open file is each process's own, so that no two move one file position.
    """

    is_archive = True

    def __init__(self, path: Path, label_file: Path | None):
        self.path = path
        try:
            self.archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
            raise PreparationError(f"{path}: is not a whole ZIP file ({error}); copy it again") from None
        self.process = os.getpid()
        entries = [entry for entry in self.archive.infolist() if not entry.is_dir()]
        # Some tools of Windows write its separator, against the format.
        foreign = not any("/" in entry.filename for entry in entries)
        self.entries = {
            entry.filename.replace("\\", "/") if foreign else entry.filename: entry
            for entry in entries
            if not entry.filename.endswith("\\")
        }
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


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a tar: which tar, and where in it after decompression."""

    tar: int
    offset: int
    size: int
    readable: bool


class TarSource(FileSource):
    """Files of a tar, or of several. Compressed ones can only be read forwards: their files keep their order.

    Args:
        paths: the tars. Of several, each file's name begins with that of its tar.
        where: the source, for messages; None = the first tar.
    """

    is_archive = True
    in_tar = True

    def __init__(self, paths: Path | Sequence[Path], label_file: Path | None, where: str | None = None):
        self.paths = [paths] if isinstance(paths, Path) else list(paths)
        self.unpackers = [_unpacker(path) for path in self.paths]
        self.stream: tuple[int, int, IO[bytes]] | None = None  # process, tar, and the tar unpacked
        self.small: dict[str, bytes] = {}  # what files beside pictures hold, where going back to them is slow
        self.entries: dict[str, Entry] = {}
        for number in range(len(self.paths)):
            self._list(number)
        ordered = sorted(self.entries, key=lambda name: (self.entries[name].tar, self.entries[name].offset))
        sizes = {name: self.entries[name].size for name in ordered}
        super().__init__(where or str(self.paths[0]), sizes, label_file, any(self.unpackers))
        self._class_tars()
        self.small = {}
        said = [
            f"{path}: has no mark at its end, as if it were cut short; files may be missing" for path in self._cut()
        ]
        self.remarks = [*self.remarks, *said]

    def _list(self, number: int) -> None:
        path = self.paths[number]
        above = f"{path.name}/" if len(self.paths) > 1 else ""
        try:
            with tarfile.open(path) as archive:
                for member in archive:
                    if member.isdir():
                        continue
                    name = above + _plain(member.name)
                    self.entries[name] = Entry(number, member.offset_data, member.size, _readable(member))
                    if self.unpackers[number] and name.lower().endswith(LABEL_FILES) and member.isreg():
                        content = archive.extractfile(member)
                        assert content is not None, "it is a regular file"
                        self.small[name] = content.read()
        except (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError) as error:
            raise PreparationError(f"{path}: is not a whole tar file ({error}); copy it again") from None

    def _cut(self) -> list[Path]:
        """Plain tars that end without a block of zeros, as those do that were cut between two files."""
        ends = [0] * len(self.paths)
        for entry in self.entries.values():
            ends[entry.tar] = max(ends[entry.tar], entry.offset + -(-entry.size // BLOCK) * BLOCK)
        # Compressed ones have marks of their own.
        plain = [number for number, unpacker in enumerate(self.unpackers) if unpacker is None]
        return [self.paths[number] for number in plain if self.paths[number].stat().st_size < ends[number] + BLOCK]

    def _class_tars(self) -> None:
        """ImageNet as it is packed: one tar for each class, called by its synset."""
        stems = [path.name.split(".")[0] for path in self.paths]
        if self.class_names is not None or len(stems) < 2 or not all(map(SYNSET.fullmatch, stems)):
            return
        if any(item.label != -1 for item in self.items):
            return
        names = sorted(set(stems))
        labels = [names.index(stem) for stem in stems]
        self.class_names = names
        self.items = [replace(item, label=labels[self.entries[item.name].tar]) for item in self.items]

    def plain_name(self, name: str) -> str:
        return name.split("/", 1)[1] if len(self.paths) > 1 else name

    def read_file(self, name: str) -> bytes:
        if name in self.small:
            return self.small[name]
        entry = self.entries[name]
        if not entry.readable:
            raise ItemError("is not a regular file of the tar")
        try:
            data = self._unpacked(entry) if self.unpackers[entry.tar] else self._part(entry)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise ItemError(f"is damaged in the tar ({error})") from None
        if len(data) != entry.size:
            raise ItemError("is cut short in the tar")
        return data

    def _part(self, entry: Entry) -> bytes:
        with open(self.paths[entry.tar], "rb") as file:
            file.seek(entry.offset)
            return file.read(entry.size)

    def _unpacked(self, entry: Entry) -> bytes:
        """The same after decompression, by a stream that each process has for its own and goes on in."""
        if self.stream is None or self.stream[:2] != (os.getpid(), entry.tar):
            self.stream = (os.getpid(), entry.tar, self.unpackers[entry.tar](self.paths[entry.tar], "rb"))
        self.stream[2].seek(entry.offset)
        return self.stream[2].read(entry.size)


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
