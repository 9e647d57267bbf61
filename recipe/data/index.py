"""What lies in a folder of shards, here or in object storage, read before anything is streamed from it."""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streaming.base.storage import CloudDownloader

from recipe.configuration.inputs import Data
from recipe.data.facts import DataError, DataFacts
from recipe.storage.addresses import open_place
from recipe.storage.places import MissingError, Place

INDEX, STATISTICS, LABELS, SKIPPED = "index.json", "stats.json", "labels.npy", "skipped.json"
Shard = dict[str, Any]
"""The entry of a shard in the index, as streaming writes it."""


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


@dataclass(frozen=True)
class OpenedSource:
    """A data set whose small files have been read.

    Attributes:
        shards: the index's entries; of local data each shard is there and whole.
        facts: what its stats.json says.
        digest: SHA-256 of the index in hexadecimal, which tells data sets apart.
        index_bytes: size of the index.
    """

    source: Source
    shards: Sequence[Shard]
    facts: DataFacts
    digest: str
    index_bytes: int

    @property
    def samples(self) -> int:
        return number_of_samples(self.shards)

    @property
    def identity(self) -> str:
        """What tells the data set from others: a digest of the index and of what the facts say of the contents.

        An index without digests of its shards is the same for all pictures of one size that are stored raw.
        """
        facts = self.facts
        said = json.dumps([facts.mean, facts.std, facts.source_hash, facts.images_per_class], default=dict)
        return hashlib.sha256(f"{self.digest} {said}".encode()).hexdigest()


def sources(data: Data) -> list[Source]:
    """The data sets that the section `data` names."""
    if data.streams is not None:
        return [
            Source(f"data.streams[{index}]", stream.local, stream.remote, stream.proportion)
            for index, stream in enumerate(data.streams)
        ]
    assert data.local is not None  # the configuration's rules ask for one of the two
    return [Source("data", data.local, data.remote)]


def open_source(source: Source) -> OpenedSource:
    """Read the index and the facts of a data set, and see whether its local shards are whole.

    Raises:
        DataError: no index, no access, a damaged file, or a local shard that is missing or of another size.
    """
    if source.remote is None:
        shards, path = check_shards(source.local, f"{source.key}.local"), Path(source.local) / STATISTICS
        index, facts = (path.parent / INDEX).read_bytes(), path.read_bytes() if path.is_file() else None
        return OpenedSource(source, shards, _facts(facts, str(path)), _digest(index), len(index))
    index = fetched(source, INDEX)
    if index is None:
        raise DataError(
            f"{source}: holds no {INDEX}; make the shards with recipe/prepare.py and copy them there, or correct the "
            "address"
        )
    shards = shards_in(index, f"{source.remote}/{INDEX}")
    facts = _facts(fetched(source, STATISTICS), f"{source.remote}/{STATISTICS}")
    return OpenedSource(source, shards, facts, _digest(index), len(index))


def facts_at(place: Place) -> DataFacts | None:
    """What the stats.json at a place says, None if there is none. Raises DataError if it is damaged."""
    try:
        return DataFacts.parse(place.read(STATISTICS), f"{place.address}/{STATISTICS}")
    except MissingError:
        return None


def check_shards(folder: str, key: str = "data.local") -> list[Shard]:
    """The shards of a local folder, each of which is there as the index says.

    Args:
        key: what names the folder, for messages.

    Raises:
        DataError: a missing folder, index or shard, an unreadable index, or a shard of another size than it says.
    """
    path = Path(folder)
    if not (path / INDEX).is_file():
        raise DataError(
            f"{key} {folder}: holds no {INDEX}; make the shards with recipe/prepare.py or name their folder"
        )
    shards = shards_in((path / INDEX).read_bytes(), str(path / INDEX))
    for shard in shards:
        _check_shard(path, shard)
    return shards


def _check_shard(folder: Path, shard: Shard) -> None:
    entries = files_of(shard)
    found = [entry for entry in entries if (folder / entry["basename"]).is_file()]
    if not found:
        raise DataError(f"{folder / entries[0]['basename']}: the shard is missing; prepare or copy the data again")
    for entry in found:
        size = (folder / entry["basename"]).stat().st_size
        if size != entry["bytes"]:
            raise DataError(
                f"{folder / entry['basename']}: the shard has {size} bytes, but {INDEX} says {entry['bytes']}; it was "
                "cut short or changed: prepare or copy the data again"
            )


def shards_in(index: bytes, place: str) -> list[Shard]:
    """The shards that the text of an index lists. Raises DataError if it is no index or lists no samples."""
    try:
        shards = json.loads(index)["shards"]
        samples = number_of_samples(shards)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{place}: is not an MDS index ({error!r}); prepare the data again") from None
    if samples == 0:
        raise DataError(f"{place}: lists no samples; prepare the data again")
    return shards


def number_of_samples(shards: Sequence[Shard]) -> int:
    """Of all shards together."""
    return sum(shard["samples"] for shard in shards)


def files_of(shard: Shard) -> list[dict[str, Any]]:
    """What the index says of a shard's files: the unpacked one, and the packed one if there is one."""
    return [shard[kind] for kind in ("raw_data", "zip_data") if shard.get(kind)]


def stored_file(shard: Shard) -> dict[str, Any]:
    """What the index says of the file that is there: the compressed one if there is compression."""
    return shard.get("zip_data") or shard["raw_data"]


def fetched(source: Source, name: str) -> bytes | None:
    """A small file from beside the shards of a remote data set, None if there is none. Raises DataError."""
    assert source.remote is not None
    try:
        if source.remote.startswith("s3://"):
            return open_place(source.remote).read(name)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            CloudDownloader.get(source.remote).direct_download(f"{source.remote}/{name}", str(path))
            return path.read_bytes()
    except (FileNotFoundError, MissingError):
        return None
    except Exception as error:  # each kind of storage has errors of its own
        raise DataError(
            f"{source}: {name} cannot be read ({error}); check the address, the network and the credentials in the "
            "environment"
        ) from None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _facts(text: bytes | None, place: str) -> DataFacts:
    return DataFacts() if text is None else DataFacts.parse(text, place)
