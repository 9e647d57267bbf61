"""What every source of pictures is to the rest: an ordered list of items, each of which can be read in any process."""

import abc
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from recipe.command_line import UserError

LARGEST_FILE = 1 << 30  # bytes of one item; more is taken for a decompression bomb
Raw: TypeAlias = "bytes | Image.Image | NDArray[np.uint8]"
"""What a source holds: the bytes of an image file, a picture, or an array [C, H, W]."""


class PreparationError(UserError):
    """Bad input of prepare.py; the message names what, the value, the rule and the fix."""


class ItemError(ValueError):
    """One item that cannot be used; the message is the reason alone."""


@dataclass(frozen=True, slots=True)
class Item:
    """One picture of a source.

    Attributes:
        name: its path or number in the source, as messages show it.
        size: bytes in the source.
        label: class id from 0 on, or -1 for none.
    """

    name: str
    size: int
    label: int = -1


class Source(abc.ABC):
    """Pictures in a fixed order. Workers are forked, so `read` must not use a file position that processes share.

    Attributes:
        items: the pictures, in the order in which they are stored.
        class_names: the name of each class id, or None if the classes have none.
        remarks: how the source was understood, for the user to read.
        holds_latents: the items are arrays of the official tool's latents, not pictures.
    """

    items: Sequence[Item]
    class_names: list[str] | None = None
    remarks: Sequence[str] = ()
    holds_latents: bool = False

    @abc.abstractmethod
    def read(self, index: int) -> Raw:
        """The item `index`. Raises ItemError with the reason if it cannot be read."""

    def label_dim(self) -> int:
        """Number of classes; 0 if no item has a label."""
        highest = max((item.label for item in self.items), default=-1)
        return highest + 1 if self.class_names is None else max(len(self.class_names), highest + 1)


def shown(name: str) -> str:
    """A name for messages and notes: control characters and bytes that are not UTF-8 as escapes."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def spread(length: int, most: int) -> list[int]:
    """Up to `most` numbers from 0 to length - 1, evenly spread, the first included."""
    number = min(length, most)
    return [index * length // number for index in range(number)]


def items_hash(items: Iterable[Item], start: str = "") -> str:
    """SHA-256 of `start` and of names, sizes and labels in order; contents of the same size give the same hash."""
    digest = hashlib.sha256(start.encode())
    for item in items:
        digest.update(f"{item.name}\0{item.size}\0{item.label}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
