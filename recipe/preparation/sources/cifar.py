"""CIFAR-10 and CIFAR-100 as their authors distribute them for Python: a tar of pickled arrays, or its folder unpacked.

The pickles are read by an unpickler that knows NumPy's arrays and nothing else.
"""

import gzip
import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipe.preparation.sources.items import LARGEST_FILE, Item, PreparationError, Source

SHAPE = (3, 32, 32)
TRAIN, TEST = "train", "test"


@dataclass(frozen=True)
class Layout:
    """What one of the data sets calls its files and their keys."""

    parts: Mapping[str, tuple[str, ...]]
    labels: bytes
    meta: str
    names: bytes


LAYOUTS = {
    "cifar-10-batches-py": Layout(
        {TRAIN: tuple(f"data_batch_{number}" for number in range(1, 6)), TEST: ("test_batch",)},
        b"labels",
        "batches.meta",
        b"label_names",
    ),
    "cifar-100-python": Layout({TRAIN: ("train",), TEST: ("test",)}, b"fine_labels", "meta", b"fine_label_names"),
}
"""By the folder in which its files lie."""


def layout_of(path: Path) -> str | None:
    """The folder's name if `path` is one of the data sets, as a tar or unpacked; else None."""
    if path.is_dir():
        return next((name for name, layout in LAYOUTS.items() if _holds(path, layout)), None)
    try:
        with tarfile.open(path) as archive:
            first = archive.next()  # and not all names, for which a compressed tar is read to its end
    except (OSError, EOFError, zlib.error, tarfile.TarError):
        return None
    name = "" if first is None else first.name.removeprefix("./").split("/")[0]
    return name if name in LAYOUTS else None


def _holds(folder: Path, layout: Layout) -> bool:
    return all((folder / name).is_file() for name in (layout.meta, *layout.parts[TRAIN], *layout.parts[TEST]))


class CifarSource(Source):
    """The pictures of one part, in the order of its files.

    Args:
        path: the tar, or the folder.
        layout: name of the folder that its files lie in.
        split: "train" or "test"; None = train.
    """

    def __init__(self, path: Path, layout: str, split: str | None = None):
        known, part = LAYOUTS[layout], split or TRAIN
        if part not in known.parts:
            raise PreparationError(f"--split {split}: {path} has {TRAIN} and {TEST}; name one of them")
        wanted = known.parts[part]
        tables = {name: _table(data, f"{path}: {name}") for name, data in _files(path, layout, (*wanted, known.meta))}
        missing = [name for name in (*wanted, known.meta) if name not in tables]
        if missing:
            raise PreparationError(f"{path}: holds no {', '.join(missing)}; fetch it again")
        self.class_names = [_text(name) for name in tables[known.meta].get(known.names, [])] or None
        self.images = {name: _images(tables[name], f"{path}: {name}") for name in wanted}
        self.places = [(name, row) for name in wanted for row in range(len(self.images[name]))]
        labels = [label for name in wanted for label in _labels(tables[name], known, f"{path}: {name}")]
        if len(labels) != len(self.places):
            raise PreparationError(f"{path}: has {len(labels)} labels for {len(self.places)} pictures; fetch it again")
        self.items = [
            Item(f"{name}[{row}]", int(np.prod(SHAPE)), label)
            for (name, row), label in zip(self.places, labels, strict=True)
        ]
        self.remarks = [f"CIFAR's {part} part, {len(self.items)} pictures"]

    def read(self, index: int) -> NDArray[np.uint8]:
        name, row = self.places[index]
        return self.images[name][row]


def _files(path: Path, layout: str, names: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """(name, contents) of those files that are there."""
    try:
        if path.is_dir():
            for name in names:
                if (path / name).is_file():
                    yield name, (path / name).read_bytes()
            return
        with tarfile.open(path) as archive:
            for member in archive:
                folder, _, name = member.name.removeprefix("./").rpartition("/")
                if folder == layout and name in names and member.isreg() and member.size <= LARGEST_FILE:
                    content = archive.extractfile(member)
                    assert content is not None, "it is a regular file"
                    yield name, content.read()
    except (OSError, EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
        raise PreparationError(f"{path}: is not whole ({error}); fetch it again") from None


class _Arrays(pickle.Unpickler):
    """Knows what an array is pickled as, by NumPy of any age, and refuses all other names."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.empty(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # bytes, as Python 3 pickles them for Python 2
            return lambda text, encoding: text.encode("latin1")
        raise pickle.UnpicklingError(f"{module}.{name} does not belong there")


def _table(data: bytes, where: str) -> Mapping[bytes, Any]:
    try:
        table = _Arrays(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # damaged bytes make unpickling fail in many ways
        raise PreparationError(f"{where} is damaged ({type(error).__name__}: {error}); fetch it again") from None
    if not isinstance(table, dict):
        raise PreparationError(f"{where} is not a table; fetch it again")
    named: dict[bytes, Any] = {key: value for key, value in table.items() if isinstance(key, bytes)}
    return named


def _images(table: Mapping[bytes, Any], where: str) -> NDArray[np.uint8]:
    data = table.get(b"data")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (int(np.prod(SHAPE)),):
        raise PreparationError(f"{where} does not hold pictures of 3x32x32 bytes; fetch it again")
    return data.reshape(-1, *SHAPE)


def _labels(table: Mapping[bytes, Any], layout: Layout, where: str) -> list[int]:
    labels = table.get(layout.labels)
    if not isinstance(labels, list) or not all(isinstance(label, int) and label >= 0 for label in labels):
        raise PreparationError(f"{where} holds no list of class ids; fetch it again")
    return labels


def _text(name: object) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
