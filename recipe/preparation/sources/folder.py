"""Pictures that are files: below a folder, in a ZIP, or in a tar. Archives are read in memory, never extracted."""

import abc
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from recipe.preparation.sources.items import LARGEST_FILE, Item, ItemError, PreparationError, Source, shown
from recipe.preparation.sources.labelling import labelled
from recipe.preparation.sources.layout import imagenet_training_files

ARRAYS = ".npy"  # ending of latents, as the official tool writes them


class FileSource(Source):
    """Files by name, sorted, with "/" between parts. Hidden ones are not looked at.

    Attributes:
        is_archive: it has to be unpacked before a folder of it can be named.
        in_tar: files that have a picture's name but for the ending belong to it.

    Args:
        where: the source, for messages.
        sizes: bytes of each file, by name.
        label_file: gives the labels; None = what lies in the source gives them, see `labelling.py`.
        ordered: `sizes` is in the order to keep.

    Raises:
        PreparationError: no files, or labels that do not fit them.
    """

    is_archive = False
    in_tar = False

    def __init__(self, where: str, sizes: Mapping[str, int], label_file: Path | None, ordered: bool = False):
        names = [name for name in sizes if not _is_hidden(name)]
        names = names if ordered else sorted(names)
        remarks = []
        training = imagenet_training_files(names)
        if training is not None:
            remarks.append(f"{where} has ImageNet's layout: only train/ is used")
            names = training
        pictures, labels = labelled(
            names, self.read_file, where, label_file, self.is_archive, self.in_tar, self.plain_name
        )
        self.remarks = [*remarks, *labels.remarks]
        self.class_names = labels.names
        self.items = [Item(name, sizes[name], label) for name, label in zip(pictures, labels.ids, strict=True)]
        arrays = sum(name.endswith(ARRAYS) for name in pictures)
        self.holds_latents = 2 * arrays > len(pictures)

    def plain_name(self, name: str) -> str:
        """The name of a file without what is no folder of the data."""
        return name

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
        empty: list[str] = []
        sizes = dict(_walk(folder, "", (os.path.realpath(folder),), empty))
        if label_file is not None and label_file.resolve().is_relative_to(folder.resolve()):
            sizes.pop(label_file.resolve().relative_to(folder.resolve()).as_posix(), None)
        super().__init__(str(folder), sizes, label_file)
        if empty and self.class_names is not None and label_file is None:
            some = ", ".join(shown(name) for name in sorted(empty)[:3])
            self.remarks = [*self.remarks, f"{folder}: empty folders are no classes: {some}"]

    def read_file(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise ItemError(f"cannot be read ({error.strerror})") from None


def _walk(folder: Path, prefix: str, parents: tuple[str, ...], empty: list[str]) -> Iterator[tuple[str, int]]:
    """Names and sizes of files; folders in which there is nothing are added to `empty`."""
    try:
        entries = list(os.scandir(folder / prefix))
    except OSError as error:
        raise PreparationError(f"{folder / prefix}: cannot be listed ({error.strerror}); check it") from None
    if not entries and prefix:
        empty.append(prefix)
    for entry in entries:
        name = prefix + entry.name
        if not entry.is_dir():
            try:
                yield name, entry.stat().st_size
            except OSError:
                yield name, 0  # a link to nowhere: reading it will fail with the reason
        elif not _is_hidden(name):
            real = os.path.realpath(entry.path)
            if real in parents:
                raise PreparationError(f"{shown(entry.path)}: is a link to a folder that holds it; remove the link")
            yield from _walk(folder, f"{name}/", (*parents, real), empty)


def _is_hidden(name: str) -> bool:
    return any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in name.split("/"))
