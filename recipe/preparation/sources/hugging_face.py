"""Data sets of the Hugging Face library `datasets`, which is an optional extra."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipe.preparation.sources.items import Item, ItemError, PreparationError, Raw, Source
from recipe.preparation.sources.labels import class_ids

LABELS = ("label", "labels")  # columns of numbers or names that are taken for classes
KINDS = ("int", "uint", "float", "string", "large_string")  # of their values


class HuggingFaceSource(Source):
    """The column of images and the column of class ids, if there is one, of a data set.

    Args:
        name: a folder that `save_to_disk` wrote, or a name on the hub, perhaps with a configuration: `NAME:CONFIG`.
        split: None = the only one.

    Raises:
        PreparationError: `datasets` is not installed, the data set or its split cannot be had, or it has no images.
    """

    def __init__(self, name: str, split: str | None):
        datasets = _library()
        self.data = _load(datasets, name, split)
        columns = self.data.features
        images = [column for column, kind in columns.items() if isinstance(kind, datasets.Image)]
        labels = [column for column, kind in columns.items() if isinstance(kind, datasets.ClassLabel)]
        labels = labels or [c for c in LABELS if str(getattr(columns.get(c), "dtype", "")).startswith(KINDS)]
        if len(images) != 1:
            raise PreparationError(f"{name}: has {len(images)} columns of images among {', '.join(columns)}; needs one")
        if len(labels) > 1:
            raise PreparationError(f"{name}: has several labels, {', '.join(labels)}; remove all but one")
        self.image = images[0]
        self.data = self.data.cast_column(self.image, datasets.Image(decode=False))
        self.remarks = []
        ids = self._classes(name, labels[0], columns[labels[0]]) if labels else [-1] * len(self.data)
        if labels and isinstance(columns[labels[0]], datasets.ClassLabel):
            self.class_names = list(columns[labels[0]].names)
        self.items = [Item(f"{self.data._fingerprint}[{index}]", 0, label) for index, label in enumerate(ids)]

    def _classes(self, name: str, column: str, kind: Any) -> Sequence[int]:
        """Class ids of a column; None is no class."""
        values = [-1 if value is None else value for value in self.data[column]]
        if hasattr(kind, "names"):  # declared as classes
            return values
        found = class_ids([(f"row {row}", value) for row, value in enumerate(values)], f"{name}, column {column}")
        self.class_names, self.remarks = found.names, found.remarks
        return found.ids

    def read(self, index: int) -> Raw:
        found = self.data[index][self.image]
        if found is None:
            raise ItemError("is empty")
        if found.get("bytes") is not None:
            return found["bytes"]
        try:
            return Path(found["path"]).read_bytes()
        except OSError as error:
            raise ItemError(f"cannot be read ({error.strerror})") from None


def _library() -> Any:
    try:
        import datasets  # pyright: ignore[reportMissingImports] (optional)
    except ImportError:
        raise PreparationError(
            "Hugging Face data sets need the package datasets; pip install 'edm2-recipe[hf]'"
        ) from None
    return datasets


def _load(datasets: Any, name: str, split: str | None) -> Any:
    try:
        if Path(name).is_dir():
            found = datasets.load_from_disk(name)
        else:
            hub_name, _, configuration = name.partition(":")
            found = datasets.load_dataset(hub_name, configuration or None)
    except Exception as error:  # of many libraries
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise PreparationError(f"{name}: the data set cannot be loaded ({reason}); check its name") from None
    if not isinstance(found, dict):
        if split is not None:
            raise PreparationError(f"--split {split}: {name} is one split already; leave it out")
        return found
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    if split not in found:
        raise PreparationError(f"--split {split}: {name} has the splits {', '.join(found)}; name one of them")
    return found[split]
