"""Pictures that are files: below a folder, in a ZIP, or in a tar. Archives are read in memory, never extracted."""

import abc
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from recipe.preparation.sources import labels
from recipe.preparation.sources.items import LARGEST_FILE, Item, ItemError, PreparationError, Source, shown

DATASET_JSON = "dataset.json"


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
                yield name, 0  # a link to nowhere: reading it will fail with the reason
        elif not _is_hidden(name):
            real = os.path.realpath(entry.path)
            if real in parents:
                raise PreparationError(f"{shown(entry.path)}: is a link to a folder that holds it; remove the link")
            yield from _walk(folder, f"{name}/", (*parents, real))


def _is_hidden(name: str) -> bool:
    return any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in name.split("/"))
