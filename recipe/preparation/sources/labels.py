"""Class ids of files: from the folders they lie in, an official `dataset.json`, or a label file."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from recipe.preparation.sources.items import PreparationError, shown

SYNSET = re.compile(r"n\d{8}")  # name of an ImageNet class folder
FILE_COLUMNS = ("file", "filename", "file_name", "path", "image", "name", "id")
LABEL_COLUMNS = ("label", "class", "class_id", "class_name", "category", "target")
Labels = tuple[list[int], "list[str] | None"]
"""A class id for each file, -1 for none, and the names of the classes if they have any."""


def imagenet_training_files(names: Sequence[str]) -> list[str] | None:
    """The files below `train/` if that holds ImageNet's class folders, and other folders lie beside it."""
    training = [name for name in names if name.startswith("train/")]
    classes = {name.split("/")[1] for name in training}
    if not training or len(training) == len(names) or not all(SYNSET.fullmatch(name) for name in classes):
        return None
    return training


def from_folders(names: Sequence[str]) -> Labels:
    """Class folders get ids by sorted name; files beside them get none. A folder that holds everything is no class."""
    parts = [name.split("/") for name in names]
    depth = 0
    while parts and all(len(part) > depth + 1 and part[depth] == parts[0][depth] for part in parts):
        depth += 1
    class_names = sorted({part[depth] for part in parts if len(part) > depth + 1})
    ids = {name: number for number, name in enumerate(class_names)}
    labels = [ids[part[depth]] if len(part) > depth + 1 else -1 for part in parts]
    return labels, [shown(name) for name in class_names] or None


def from_dataset_json(data: bytes, names: Sequence[str], where: str) -> Labels:
    """Labels of an official EDM or EDM2 data set, whose `dataset.json` lists [file name, class id], or null.

    Raises:
        PreparationError: another content, labels that are not class ids, or files without one.
    """
    try:
        content = json.loads(data)["labels"]
    except (ValueError, KeyError, TypeError):
        raise PreparationError(
            f'{where}: must be JSON with the key "labels", as the official tool writes it; correct or remove it'
        ) from None
    if content is None:
        return [-1] * len(names), None
    return _of_files(_pairs(content, where), names, where)


def from_file(path: Path, names: Sequence[str]) -> Labels:
    """Labels from a CSV or JSON file that gives each file name, or path in the source, a class id or class name.

    CSV: two columns, file and label, or any columns with a header such as `file,label`. JSON: {name: label},
    [[name, label], ...], [{"file": name, "label": label}, ...], or one of these below the key "labels".
    Class names get ids in sorted order; numbers are class ids.

    Raises:
        PreparationError: a file that cannot be read so, or files without a label.
    """
    where = f"--labels {path}"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise PreparationError(f"{where}: cannot be read ({reason}); name a CSV or JSON file") from None
    if path.suffix.lower() != ".json":
        return _of_files(_csv_pairs(text, where), names, where)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise PreparationError(f"{where}: is not valid JSON ({error}); correct it") from None
    if isinstance(content, dict) and isinstance(content.get("labels"), list | dict):
        content = content["labels"]
    return _of_files(_pairs(content, where), names, where)


def _csv_pairs(text: str, where: str) -> list[tuple[str, Any]]:
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    columns = (0, 1)
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    found = [[header.index(name) for name in known if name in header] for known in (FILE_COLUMNS, LABEL_COLUMNS)]
    if found[0] and found[1]:
        columns, rows = (found[0][0], found[1][0]), rows[1:]
    short = next((row for row in rows if len(row) <= max(columns)), None)
    if short is not None:
        raise PreparationError(f"{where}: the line {','.join(short)!r} has too few columns; write file,label")
    return [(row[columns[0]].strip(), row[columns[1]].strip()) for row in rows]


def _pairs(content: Any, where: str) -> list[tuple[str, Any]]:
    if isinstance(content, dict):
        return list(content.items())
    pairs = []
    for entry in content if isinstance(content, list) else [content]:
        if isinstance(entry, dict):
            keys = [next((key for key in known if key in entry), "") for known in (FILE_COLUMNS, LABEL_COLUMNS)]
            entry = [entry.get(key) for key in keys]
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
            raise PreparationError(f"{where}: {json.dumps(entry)[:80]} is not [file name, label]; correct it")
        pairs.append((entry[0], entry[1]))
    return pairs


def _of_files(pairs: Sequence[tuple[str, Any]], names: Sequence[str], where: str) -> Labels:
    """The labels of `names`, which are looked up by path, then by file name alone."""
    given, class_names = _class_ids(pairs, where)
    basenames = [PurePosixPath(name).name for name in names]
    alone = {base for base, count in Counter(basenames).items() if count == 1}
    labels = [
        given.get(name, given.get(base) if base in alone else None) for name, base in zip(names, basenames, strict=True)
    ]
    missing = [shown(name) for name, label in zip(names, labels, strict=True) if label is None]
    if missing:
        raise PreparationError(
            f"{where}: gives no label to {len(missing)} of {len(names)} files, the first {missing[0]}; add them, "
            "with -1 for no class, or remove the files"
        )
    return [label for label in labels if label is not None], class_names


def _class_ids(pairs: Sequence[tuple[str, Any]], where: str) -> tuple[Mapping[str, int], "list[str] | None"]:
    wrong = next((label for _, label in pairs if not isinstance(label, str | int) or isinstance(label, bool)), None)
    if wrong is not None:
        raise PreparationError(f"{where}: the label {json.dumps(wrong)} is no class id or class name; correct it")
    if all(re.fullmatch(r"-?\d{1,9}", str(label)) for _, label in pairs):
        ids = {name: int(label) for name, label in pairs}
        if min(ids.values(), default=0) < -1:
            raise PreparationError(
                f"{where}: the class id {min(ids.values())} is below -1; ids count from 0, -1 = none"
            )
        class_names = None
    else:
        class_names = sorted({str(label) for _, label in pairs})
        numbers = {name: number for number, name in enumerate(class_names)}
        ids = {name: numbers[str(label)] for name, label in pairs}
        class_names = [shown(name) for name in class_names]
    if len(ids) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise PreparationError(f"{where}: lists {shown(twice)} twice; remove one of the two")
    return ids, class_names
