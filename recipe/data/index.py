"""What lies in a folder of shards, here or in object storage, read before anything is streamed from it."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from streaming.base.format import reader_from_json
from streaming.base.storage import CloudDownloader

from recipe.data.facts import DataError
from recipe.storage.addresses import open_place
from recipe.storage.places import MissingError


@dataclass(frozen=True)
class Source:
    """One data set of a run.

    Attributes:
        key: what its keys in the configuration begin with.
        local, remote: as there.
        proportion: its share of the samples, relative to the others'.
    """

    key: str
    local: str
    remote: str | None
    proportion: float = 1.0

    def __str__(self) -> str:
        return f"{self.key}.local {self.local}" if self.remote is None else f"{self.key}.remote {self.remote}"


def sources(data: Any) -> list[Source]:
    """The data sets that a configuration's section `data` names."""
    if data.streams is None:
        return [Source("data", data.local, data.remote)]
    return [
        Source(f"data.streams[{index}]", stream.local, stream.remote, stream.proportion)
        for index, stream in enumerate(data.streams)
    ]


def read_index(folder: Path) -> list[dict[str, Any]]:
    """The shards that the index in `folder` lists. Raises DataError if it cannot be read or lists no samples."""
    try:
        shards = json.loads((folder / INDEX).read_text())["shards"]
        samples = sum(shard["samples"] for shard in shards)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / INDEX}: is not an MDS index ({error!r}); prepare the data again") from None
    if samples == 0:
        raise DataError(f"{folder / INDEX}: lists no samples; prepare the data again")
    return shards


def check_shards(folder: str, key: str = "data.local") -> int:
    """Check that `folder` holds a complete set of MDS shards and return the number of samples.

    Raises:
        DataError: a missing folder, index or shard, an unreadable index, or a shard of another size than it says.
    """
    path = Path(folder)
    if not (path / INDEX).is_file():
        raise DataError(
            f"{key} {folder}: holds no {INDEX}; make the shards with recipe/prepare.py or name their folder"
        )
    shards = read_index(path)
    for shard in shards:
        entries = [shard[kind] for kind in ("raw_data", "zip_data") if shard.get(kind)]
        found = [entry for entry in entries if (path / entry["basename"]).is_file()]
        if not found:
            raise DataError(f"{path / entries[0]['basename']}: the shard is missing; prepare or copy the data again")
        for entry in found:
            size = (path / entry["basename"]).stat().st_size
            if size != entry["bytes"]:
                raise DataError(
                    f"{path / entry['basename']}: the shard has {size} bytes, but {INDEX} says {entry['bytes']}; it "
                    "was cut short or changed: prepare or copy the data again"
                )
    return sum(shard["samples"] for shard in shards)


def read_statistics(folder: str) -> dict[str, Any]:
    """What `prepare.py` noted of the data, or {} if there is no such note."""
    path = Path(folder) / STATISTICS
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise DataError(f"{path}: is not valid JSON ({error}); prepare the data again or delete the file") from None


def read_remote(source: Source) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Index and statistics of shards in object storage, from two small files there.

    Raises:
        DataError: no index there, or no access.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name in (INDEX, STATISTICS):
            if not _fetched(source, name, Path(folder)) and name == INDEX:
                raise DataError(
                    f"{source}: holds no {INDEX}; make the shards with recipe/prepare.py and copy them there, or mend "
                    "the address"
                )
        return read_index(Path(folder)), read_statistics(folder)


def _fetched(source: Source, name: str, folder: Path) -> bool:
    """Copy a file from beside remote shards into `folder`; False if there is none. Raises DataError without access."""
    assert source.remote is not None
    try:
        if source.remote.startswith("s3://"):
            (folder / name).write_bytes(open_place(source.remote).read(name))
        else:
            CloudDownloader.get(source.remote).direct_download(f"{source.remote}/{name}", str(folder / name))
        return True
    except (FileNotFoundError, MissingError):
        return False
    except Exception as error:  # each kind of storage has errors of its own
        raise DataError(
            f"{source}: {name} cannot be read ({error}); check the address, the network and the credentials in the "
            "environment"
        ) from None


def read_labels(source: Source) -> NDArray[np.int64]:
    """The class of each sample [N], in the order of the shards: from labels.npy beside them, or from local shards.

    Raises:
        DataError: no such file beside remote shards, one that does not fit them, or samples without a class.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(source.local if source.remote is None else temporary)
        if source.remote is None:
            shards = read_index(folder)
        else:
            shards, _ = read_remote(source)
            if not _fetched(source, LABELS, folder):
                raise DataError(
                    f"{source}: holds no {LABELS}, which data.class_balanced needs; prepare the data again, or set "
                    "data.class_balanced=false"
                )
        labels = _stored_labels(folder / LABELS) if (folder / LABELS).is_file() else _labels_in(folder, shards)
    samples = sum(shard["samples"] for shard in shards)
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


def _stored_labels(path: Path) -> NDArray[Any]:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is not an array of NumPy ({error}); prepare the data again") from None


def _labels_in(folder: Path, shards: Sequence[dict[str, Any]]) -> NDArray[np.int64]:
    """Read the shards through for their labels. Raises DataError if one of them is not there uncompressed."""
    found = []
    for shard in shards:
        reader = reader_from_json(str(folder), "", shard)
        try:
            found += [int(reader[index]["label"]) for index in range(shard["samples"])]
        except (KeyError, OSError, ValueError) as error:
            raise DataError(
                f"{folder / shard['raw_data']['basename']}: has no labels that can be read ({error!r}); prepare the "
                f"data again, which writes {LABELS}"
            ) from None
    return np.array(found, np.int64)


INDEX, STATISTICS, LABELS, SKIPPED = "index.json", "stats.json", "labels.npy", "skipped.json"


def stored_file(entry: dict[str, Any]) -> dict[str, Any]:
    """What an entry of the index says of the file that is there: the compressed one if there is compression."""
    return entry.get("zip_data") or entry["raw_data"]
