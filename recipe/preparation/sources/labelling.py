"""Where the labels of files come from: a label file, dataset.json, metadata files, files beside pictures, folders."""

import functools
import posixpath
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from recipe.preparation.sources.items import ItemError, PreparationError, shown
from recipe.preparation.sources.label_files import NoLabels, json_object, label_pairs, label_text, read_label_file
from recipe.preparation.sources.labels import FileNames, Labels, of_files
from recipe.preparation.sources.layout import class_folders
from recipe.preparation.sources.sidecars import Sidecars

DATASET_JSON = "dataset.json"  # of the official tools
METADATA = ("metadata.jsonl", "metadata.csv")  # of Hugging Face's ImageFolder
Read = Callable[[str], bytes]


def labelled(
    names: Sequence[str],
    read: Read,
    where: str,
    label_file: Path | None,
    is_archive: bool = False,
    in_tar: bool = False,
    plain: Callable[[str], str] = str,
) -> tuple[list[str], Labels]:
    """Which of the files of a source are pictures, and their labels. The first that speaks of labels is believed.

    Args:
        read: gives the contents of a file, or raises ItemError.
        where: the source, for messages.
        label_file: the user's; goes before all that is in the source.
        is_archive: the source has to be unpacked before a folder of it can be named.
        in_tar: files that have a picture's name but for the ending belong to it, as in WebDataset.
        plain: the name of a file without what is no folder of the data.

    Raises:
        PreparationError: no files, or labels that do not fit them.
    """
    special = {name for name in names if _base(name) in (DATASET_JSON, *METADATA)}
    rest = [name for name in names if name not in special]
    sidecars = Sidecars(rest, in_tar, where)
    beside = sidecars.files()
    pictures = [name for name in rest if name not in beside]
    if not pictures:
        raise PreparationError(f"{where}: holds no files; name a folder or an archive of images")
    if label_file is not None:
        return pictures, _from_file(label_file, pictures)
    remarks: list[str] = []
    found = _from_dataset_json([name for name in special if _base(name) == DATASET_JSON], pictures, read, where)
    if found is None:
        described = sorted(name for name in special if _base(name) in METADATA)
        folders = functools.partial(class_folders, list(map(plain, pictures)), where, is_archive)
        if described:
            folders()  # parts of a data set have a file each: they are refused
        found = _from_metadata(described, pictures, read, where, remarks)
        if found is None and beside:
            found = sidecars.labels(pictures, read)
            remarks += [] if found else sidecars.remarks()
        found = found or folders()
    return pictures, Labels(found.ids, found.names, remarks + found.remarks)


def _from_file(path: Path, pictures: Sequence[str]) -> Labels:
    where = f"--labels {path}"
    files = FileNames(pictures)
    pairs, remarks = label_pairs(label_text(read_label_file(path, where), where), path.suffix.lower(), files, where)
    labels = of_files(pairs, files, where)
    return Labels(labels.ids, labels.names, remarks + labels.remarks)


def _from_dataset_json(found: Sequence[str], pictures: Sequence[str], read: Read, where: str) -> Labels | None:
    """Labels of an official EDM or EDM2 data set, whose `dataset.json` lists [file name, class id], or null.

    Its names are relative to its own folder, which may lie in another one: archives are often packed again so.
    """
    if not found:
        return None
    if len(found) > 1:
        several = " and ".join(map(shown, sorted(found)[:2]))
        raise PreparationError(f"{where}: holds several data sets, {several}; prepare each by itself")
    described = f"{where}/{shown(found[0])}"
    try:
        content = json_object(label_text(_read(found[0], read, where), described), described)["labels"]
    except PreparationError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError):
        raise PreparationError(
            f'{described}: must be JSON with the key "labels", as the official tool writes it; correct or remove it'
        ) from None
    if content is None:
        return Labels([-1] * len(pictures))
    return of_files(_beside(found[0], _entries(content, described)), FileNames(pictures), described)


def _entries(content: Any, where: str) -> list[tuple[str, Any]]:
    entries = list(content.items()) if isinstance(content, dict) else content
    for entry in entries if isinstance(entries, list) else [entries]:
        if not (isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[0], str)):
            raise PreparationError(f"{where}: {str(entry)[:80]} is not [file name, label]; correct it")
    return [(name, label) for name, label in entries]


def _from_metadata(
    found: Sequence[str], pictures: Sequence[str], read: Read, where: str, remarks: list[str]
) -> Labels | None:
    """Labels of metadata files, each of which speaks of files below its own folder; None if they hold none."""
    every, files = [], FileNames(pictures)
    for name in found:
        described = f"{where}/{shown(name)}"
        folder = name.removesuffix(_base(name))
        below = FileNames([picture.removeprefix(folder) for picture in pictures if picture.startswith(folder)])
        text = label_text(_read(name, read, where), described)
        try:
            pairs, said = label_pairs(text, posixpath.splitext(name)[1], below, described, only_known=True)
        except NoLabels as error:
            remarks.append(f"{error}, for now it is not used")
            continue
        remarks += said
        every += _beside(name, pairs)
    if not every:
        return None
    return of_files(every, files, f"{where}/{shown(found[0])}" if len(found) == 1 else f"the metadata of {where}")


def _beside(name: str, pairs: Any) -> list[tuple[str, Any]]:
    """Entries whose names are relative to the folder of the file `name`."""
    folder = name.removesuffix(_base(name))
    return [(folder + entry, label) for entry, label in pairs]


def _read(name: str, read: Read, where: str) -> bytes:
    try:
        return read(name)
    except ItemError as error:
        raise PreparationError(f"{where}/{shown(name)}: {error}; repair or remove it") from None


def _base(name: str) -> str:
    return posixpath.basename(name)
