"""The class of each sample of a data set, which drawing each class equally often needs."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from streaming.base.format import reader_from_json

from recipe.data.facts import DataError
from recipe.data.index import LABELS, OpenedSource, Shard, fetched


def read_labels(opened: OpenedSource) -> NDArray[np.int64]:
    """The class of each sample [N], in the order of the shards: from labels.npy beside them, or from local shards.

    Raises:
        DataError: no such file beside remote shards, one that does not fit them, or samples without a class.
    """
    source, samples = opened.source, opened.samples
    stored = _stored(opened)
    labels = _in_shards(Path(source.local), opened.shards) if stored is None else stored
    if labels.shape != (samples,) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{source}: {LABELS} holds {labels.dtype} {list(labels.shape)}, but must hold an integer for each of "
            f"{samples} samples; prepare the data again"
        )
    if labels.min() < 0:
        raise DataError(
            f"{source}: {int((labels < 0).sum())} of {samples} samples have no class; set data.class_balanced=false"
        )
    return labels.astype(np.int64)


def _stored(opened: OpenedSource) -> NDArray[Any] | None:
    """What labels.npy holds; None if a local folder has none."""
    source = opened.source
    path = Path(source.local) / LABELS
    if source.remote is None:
        data, place = path.read_bytes() if path.is_file() else None, str(path)
    else:
        data, place = fetched(source, LABELS), f"{source.remote}/{LABELS}"
        if data is None:
            raise DataError(
                f"{source}: holds no {LABELS}, which data.class_balanced needs; prepare the data again, or set "
                "data.class_balanced=false"
            )
    try:
        return None if data is None else np.load(io.BytesIO(data), allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{place}: is not an array of NumPy ({error}); prepare the data again") from None


def _in_shards(folder: Path, shards: Sequence[Shard]) -> NDArray[np.int64]:
    """Read the shards through for their labels. Raises DataError if one of them is not there uncompressed."""
    found = []
    for shard in shards:
        reader = reader_from_json(str(folder), "", shard)
        try:
            reader.validate(allow_unsafe_types=False)  # all columns of a sample are decoded, also one of pickles
            found += [int(reader[index]["label"]) for index in range(shard["samples"])]
        except (KeyError, OSError, ValueError) as error:
            raise DataError(
                f"{folder / shard['raw_data']['basename']}: has no labels that can be read ({error!r}); prepare the "
                f"data again, which writes {LABELS}"
            ) from None
    return np.array(found, np.int64)
