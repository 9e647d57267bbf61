"""From what is said of files to class ids: which file an entry names, and which class a number or a word is.

Where the entries come from (a label file, `dataset.json`, files beside the pictures) is labelling.py's matter.
"""

import functools
import json
import math
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from recipe.preparation.sources.items import PreparationError, shown

MOST_CLASSES = 1_000_000  # beyond it, numbers are no class ids
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d{1,3})?", re.IGNORECASE)
COMMA = re.compile(r"[+-]?\d+,0*")  # a whole number as spreadsheets of many countries write it
ODD = re.compile(r"\\|^/|/$|//|(^|/)\./")  # in a path that is not in its shortest form
NEVER_NAMES = {"", "nan", "<na>"}  # what tables write where nothing is
MISSING = NEVER_NAMES | {"na", "n/a", "null", "none", "-", "?"}  # among numbers
EXAMPLES = 3  # names in a message
Pairs = Sequence[tuple[str, object]]
"""A name of a file, and what is said to be its label."""


@dataclass(frozen=True)
class Labels:
    """What is known of the classes of some files.

    Attributes:
        ids: class id of each file, -1 for none.
        names: the name of each class id, or None if the classes have none.
        remarks: what is unusual about them.
    """

    ids: list[int]
    names: list[str] | None = None
    remarks: list[str] = field(default_factory=list)


class FileNames:
    """The files of a source, as a label file may name them.

    Args:
        names: paths in the source, with "/" between parts.
    """

    def __init__(self, names: Sequence[str]):
        self.names = names
        self.paths = {_normal(name): name for name in names}

    @functools.cached_property
    def bases(self) -> dict[str, str]:
        """Files by their name alone, if only one has it."""
        return _unique((posixpath.basename(path), name) for path, name in self.paths.items())

    @functools.cached_property
    def stems(self) -> dict[str, str]:
        """The same by their name without its ending."""
        return _unique((_stem(path), name) for path, name in self.paths.items())

    @functools.cached_property
    def folded(self) -> dict[str, str]:
        """The same by their name, whatever its capital letters."""
        return _unique((posixpath.basename(path).casefold(), name) for path, name in self.paths.items())

    def find(self, entry: str) -> str | None:
        """The file that `entry` names; None if there is none, or more than one.

        It is the file's path in the source, or in a folder above it, or the file's name alone, if only one file has
        it: with its ending or without, or with other capital letters.
        """
        normal = _normal(entry)
        if normal in self.paths:
            return self.paths[normal]
        parts = normal.split("/")
        for first in range(1, len(parts)):
            found = self.paths.get("/".join(parts[first:]))
            if found is not None:
                return found
        base = parts[-1]
        return self.bases.get(base) or self.stems.get(base) or self.folded.get(base.casefold())

    def fitting(self, entry: str) -> list[str]:
        """All files with the name of `entry`, without regard to folders."""
        base = _normal(entry).split("/")[-1]
        return [name for path, name in self.paths.items() if base in (posixpath.basename(path), _stem(path))]


def _stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]


def _normal(name: str) -> str:
    """A path as Unix writes it, its letters composed: the same name may be stored in several ways."""
    name = name.strip()
    if name.isascii() and not ODD.search(name):
        return name
    name = unicodedata.normalize("NFC", name).replace("\\", "/")
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _unique(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    twice = set()
    for key, name in pairs:
        if found.setdefault(key, name) != name:
            twice.add(key)
    return {key: name for key, name in found.items() if key not in twice}


def of_files(pairs: Pairs, files: FileNames, where: str) -> Labels:
    """The labels of `files`, each of which has to have one entry.

    Raises:
        PreparationError: entries of files that are not there, files without an entry or with several that differ, or
            labels that `class_ids` refuses.
    """
    classes = class_ids(pairs, where)
    given: dict[str, int] = {}
    strays, again = [], 0
    for (entry, label), number in zip(pairs, classes.ids, strict=True):
        name = files.find(entry)
        if name is None:
            strays.append(entry)
        elif given.setdefault(name, number) != number:
            raise PreparationError(
                f"{where}: lists {shown(entry)} twice, with different labels, the second {json.dumps(label)}; remove "
                "one of the two"
            )
        else:
            again += 1
    _refuse_gaps([name for name in files.names if name not in given], strays, files, where)
    again -= len(given)
    remarks = [f"{where}: lists {again} files more than once, with the same label"] if again else []
    return Labels([given[name] for name in files.names], classes.names, classes.remarks + remarks)


def _refuse_gaps(missing: Sequence[str], strays: Sequence[str], files: FileNames, where: str) -> None:
    problems = []
    if missing:
        problems.append(
            f"gives no label to {len(missing)} of {len(files.names)} files, the first {shown(missing[0])}; add them, "
            "with -1 for no class, or remove the files"
        )
    for entry in strays[:EXAMPLES]:
        fitting = files.fitting(entry)
        if len(fitting) > 1:
            some = " or ".join(map(shown, fitting[:EXAMPLES]))
            problems.append(f"{shown(entry)} may be {some}; write the path in the source")
            break
    else:
        if strays:
            some = ", ".join(map(shown, strays[:EXAMPLES]))
            problems.append(
                f"names {len(strays)} files that are not in the source, such as {some}; remove these lines, or check "
                "that the source is complete"
            )
    if problems:
        raise PreparationError(f"{where}: {', and '.join(problems)}")


def class_ids(pairs: Pairs, where: str) -> Labels:
    """Class ids of labels: whole numbers are ids, 3.0 is 3; names get ids in sorted order, numbers first.

    -1 is no class in any case.

    Raises:
        PreparationError: an empty label, a fraction, an id below -1, or something that is neither number nor name.
    """
    texts = [_text(name, label, where) for name, label in pairs]
    numbers = {text: float(text) for text in set(texts) if NUMBER.fullmatch(text)}
    words = set(texts) - set(numbers)
    for (name, label), text in zip(pairs, texts, strict=True):
        lower = text.lower()
        if lower in NEVER_NAMES or (lower in MISSING and all(word.lower() in MISSING for word in words)):
            said = "an empty label" if text == "" else f"the label {json.dumps(label)}"
            raise PreparationError(f"{where}: {shown(name)} has {said}; write -1 for no class")
    if not words:
        return Labels([_id(name, numbers[text], text, where) for (name, _), text in zip(pairs, texts, strict=True)])
    whole = {text: str(int(number)) for text, number in numbers.items() if number.is_integer()}
    texts = [whole.get(text, text) for text in texts]
    names = sorted(set(texts) - {"-1"}, key=by_number)
    ids = {name: number for number, name in enumerate(names)} | {"-1": -1}
    remarks = []
    if set(numbers) - {"-1"}:
        few = sorted(words)[0]
        remarks.append(f"{where}: some labels are numbers, others such as {json.dumps(few)} names; all count as names")
    return Labels([ids[text] for text in texts], list(map(shown, names)), remarks + alike(names, where))


def alike(names: Sequence[str], where: str) -> list[str]:
    """A remark if names of classes differ by capital letters alone."""
    folded = Counter(name.casefold() for name in names)
    same = [name for name in names if folded[name.casefold()] > 1]
    if not same:
        return []
    return [
        f"{where}: the classes {' and '.join(json.dumps(shown(name), ensure_ascii=False) for name in same[:2])} "
        "differ by capital letters alone"
    ]


def by_number(name: str) -> tuple[bool, float, str]:
    """What names of classes are sorted by: numbers as numbers, before words."""
    is_number = NUMBER.fullmatch(name) is not None
    return not is_number, float(name) if is_number else 0, name


def _text(name: str, label: object, where: str) -> str:
    """A label as text; numbers without a fraction as whole ones."""
    if label is None or (isinstance(label, float) and math.isnan(label)):
        raise PreparationError(f"{where}: {shown(name)} has an empty label; write -1 for no class")
    if isinstance(label, str):
        if any(unicodedata.category(letter) == "Cc" for letter in label.strip()):
            raise PreparationError(
                f"{where}: the label of {shown(name)} has characters that cannot be printed, {json.dumps(label)[:80]}; "
                "write a class id or class name as text"
            )
        text = unicodedata.normalize("NFC", label.strip())
        return text.split(",")[0] if COMMA.fullmatch(text) else text
    if isinstance(label, int | float) and not isinstance(label, bool):
        return str(label)
    raise PreparationError(f"{where}: the label {json.dumps(label)[:80]} is no class id or class name; correct it")


def _id(name: str, number: float, text: str, where: str) -> int:
    if not math.isfinite(number) or not number.is_integer():
        raise PreparationError(
            f"{where}: the label {text} is no class id or class name, of {shown(name)}; ids are whole numbers from 0"
        )
    if number < -1:
        raise PreparationError(f"{where}: the class id {text} is below -1; ids count from 0, -1 = none")
    if number >= MOST_CLASSES:
        raise PreparationError(
            f"{where}: the class id {text} of {shown(name)} is beyond {MOST_CLASSES - 1}; number the classes from 0"
        )
    return int(number)
