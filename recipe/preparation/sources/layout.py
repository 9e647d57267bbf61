"""What the folders of a source mean: classes, ImageNet's layout, or parts of a data set such as train/ and test/."""

import functools
import itertools
import posixpath
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from PIL import Image

from recipe.preparation.sources.items import PreparationError, shown
from recipe.preparation.sources.labels import NUMBER, Labels, alike, by_number

SYNSET = re.compile(r"n\d{8}")  # name of an ImageNet class folder
SPLITS = {
    "train": "train", "training": "train", "trainval": "train", "test": "test", "testing": "test", "val": "val",
    "valid": "val", "validation": "val", "dev": "val", "eval": "val", "unlabeled": "rest", "unlabelled": "rest",
}  # fmt: skip
"""What folders with parts of a data set are called, and the part."""


def looks_like_picture(name: str) -> bool:
    """Whether a file's name says that it is a picture, or says nothing."""
    suffix = posixpath.splitext(name)[1].lower()
    return suffix == "" or suffix in _endings()


@functools.cache
def _endings() -> frozenset[str]:
    return frozenset(Image.registered_extensions())  # which asks all of Pillow's readers


def imagenet_training_files(names: Sequence[str]) -> list[str] | None:
    """The files below `train/` if that holds ImageNet's class folders, and other folders lie beside it."""
    parts = [name.split("/") for name in names]
    depth = _common_depth(parts)
    training = [part for part in parts if len(part) > depth + 1 and part[depth] == "train"]
    if not training or len(training) == len(parts):
        return None
    if not all(len(part) > depth + 2 and SYNSET.fullmatch(part[depth + 1]) for part in training):
        return None
    return ["/".join(part) for part in training]


def class_folders(names: Sequence[str], where: str, is_archive: bool = False) -> Labels:
    """Class folders get ids by sorted name, numbers as numbers; files beside them get none.

    A folder that holds everything is no class, and files that are no pictures by their names decide nothing.

    Args:
        where: the source, for messages.
        is_archive: it has to be unpacked before a folder of it can be named.

    Raises:
        PreparationError: the folders are parts of a data set (train/ and test/), or two are the same number.
    """
    every = [name.split("/") for name in names]
    deciding = [name.split("/") for name in names if looks_like_picture(name)] or every
    depth = _class_depth(deciding)
    top = deciding[0][:depth] if deciding else []
    inside = [part for part in deciding if len(part) > depth + 1 and part[:depth] == top]
    _refuse_splits(inside, depth, where, is_archive)
    folders = sorted({part[depth] for part in inside}, key=by_number)
    remarks = _checked_numbers(folders, where) + alike(folders, where)
    ids = {name: number for number, name in enumerate(folders)}
    labels = [ids.get(part[depth], -1) if len(part) > depth + 1 and part[:depth] == top else -1 for part in every]
    return Labels(labels, [shown(name) for name in folders] or None, remarks)


def _common_depth(parts: Sequence[Sequence[str]]) -> int:
    """How many folders all files share."""
    depth = 0
    while parts and all(len(part) > depth + 1 and part[depth] == parts[0][depth] for part in parts):
        depth += 1
    return depth


def _class_depth(parts: list[list[str]]) -> int:
    """At which depth the class folders lie: below folders that hold everything, but for files beside them."""
    depth = _common_depth(parts)
    inside = [part for part in parts if len(part) > depth + 1]
    folders = {part[depth] for part in inside}
    deeper = {part[depth + 1] for part in inside if len(part) > depth + 2}
    if len(folders) == 1 and len(deeper) > (0 if folders <= SPLITS.keys() else 1):
        # One folder with class folders in it, and pictures beside it. Those of the folders below are asked again.
        return _class_depth(inside)
    return depth


def part_of(name: str) -> tuple[str, str] | None:
    """Which part of a data set a name speaks of, and the rest of the name; None if it speaks of none or of several.

    train2017 -> (train, ""), seg_test -> (test, seg)
    """
    words = re.findall(r"[a-z]+", name.lower())
    found = {SPLITS[word] for word in words if word in SPLITS}
    return (found.pop(), " ".join(word for word in words if word not in SPLITS)) if len(found) == 1 else None


def different_parts(names: Sequence[str]) -> list[str]:
    """Those of the names that are different parts of one data set; [] if there are fewer than two parts."""
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for name in names:
        if (part := part_of(name)) is not None:
            groups[part[1]].setdefault(part[0], name)
    return next((list(group.values()) for group in groups.values() if len(group) > 1), [])


def _refuse_splits(inside: Sequence[Sequence[str]], depth: int, where: str, is_archive: bool) -> None:
    within: Mapping[str, set[str]] = defaultdict(set)
    for part in inside:
        within[part[depth]].update(part[depth + 1 : -1])
    parts = sorted(different_parts(sorted(within)), key=lambda name: (part_of(name) or "")[0] != "train")
    plain = all(name.lower() in SPLITS for name in parts)
    shared = bool(parts) and bool(set.intersection(*(within[name] for name in parts)))
    if not parts or not (plain or shared or set(within) == set(parts)):
        return
    first = "/".join([*inside[0][:depth], parts[0]])
    how = f"unpack it and name the folder {shown(first)}" if is_archive else f"name {where}/{shown(first)}"
    raise PreparationError(
        f"{where}: {' and '.join(f'{shown(name)}/' for name in parts)} are parts of a data set, not classes; {how}"
    )


def _checked_numbers(folders: Sequence[str], where: str) -> list[str]:
    """A remark if folders are called by numbers that are not their ids."""
    numbers = [float(name) for name in folders if NUMBER.fullmatch(name)]
    for one, other in itertools.pairwise(folders):
        if NUMBER.fullmatch(one) and NUMBER.fullmatch(other) and float(one) == float(other):
            raise PreparationError(f"{where}: the folders {one} and {other} are the same number; rename or join them")
    if len(numbers) < len(folders) or not folders:
        return []
    if -1 in numbers:
        raise PreparationError(
            f"{where}: a class folder is called {folders[0]}; pictures without a class lie beside the class folders, "
            "move them there, or rename the folder"
        )
    if numbers == list(range(len(folders))):
        return []
    return [
        f"{where}: the class folders are numbers, but not all from 0 to {len(folders) - 1}; their ids are their places "
        f"in order: folder {folders[0]} is class 0, folder {folders[-1]} is class {len(folders) - 1}"
    ]
