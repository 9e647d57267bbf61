"""What `prepare.py` prints of a source's classes: how many, the first and last with their ids, what is unusual."""

import json
from collections import Counter
from collections.abc import Sequence

from recipe.preparation.sources.items import Source

SHOWN = 3  # classes, or ids, in a list
MANY = 20  # classes from which on it is odd if each has one picture


def class_line(source: Source) -> str:
    """One line such as `labels: 12 classes, 0 "cat" to 11 "yak" (then 1 "cow", 2 "dog", 3 "eel", ...)`."""
    counts = Counter(item.label for item in source.items)
    number, images = source.label_dim(), len(source.items)
    if number == 0:
        return "labels: none; all images are of one kind"
    names = source.class_names
    text = f"labels: {number} classes, {_called(0, names)} to {_called(number - 1, names)}"
    if number == 1:
        text = f"labels: 1 class, {_called(0, names)}"
    if names is not None and number > 2:
        between = [_called(index, names) for index in range(1, min(number - 1, 1 + SHOWN))]
        text += f" (then {_listed(between, number - 2)})"
    return "; ".join([text, *_unusual(counts, number, images, names)])


def _unusual(counts: Counter[int], number: int, images: int, names: Sequence[str] | None) -> list[str]:
    found = []
    if counts[-1]:
        found.append(f"{counts[-1]} of {images} images have no label")
    empty = [index for index in range(number) if not counts[index]]
    if empty == [0] and names is None:
        found.append("no image has class 0: ids count from 0, so subtract 1 if yours count from 1")
    elif empty:
        some = [_called(index, names) for index in empty[:SHOWN]]
        found.append(f"{len(empty)} of these classes have no images: {_listed(some, len(empty))}")
    if number > MANY and number == images:
        found.append("each image has a class of its own: are these classes?")
    return found


def _called(index: int, names: Sequence[str] | None) -> str:
    if names is None or index >= len(names):
        return str(index)
    return f"{index} {json.dumps(names[index], ensure_ascii=False)}"


def _listed(some: Sequence[str], number: int) -> str:
    return ", ".join([*some, "..."] if number > len(some) else some)
