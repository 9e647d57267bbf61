"""Single samples of MDS shards by ranged reads, local or in S3. Nothing is unpickled."""

import bisect
import functools
import json
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from recipe.data.facts import DataError
from recipe.data.index import INDEX, stored_file
from recipe.storage.places import MissingError, Place

UNSAFE = "pkl"


class ShardError(DataError):
    """A shard that is not what its index says; the message is the reason alone."""


class MdsShards:
    """Samples of the MDS data set at a place, by number.

    Raises:
        DataError: no index, a damaged one, or a column that would have to be unpickled.
    """

    def __init__(self, place: Place):
        self.place = place
        try:
            self.shards = json.loads(place.read(INDEX))["shards"]
            self.ends = list(accumulate(shard["samples"] for shard in self.shards))
            encodings = [encoding for shard in self.shards for encoding in shard["column_encodings"]]
        except MissingError:
            raise DataError(f"{place.address}: holds no {INDEX} of MDS shards; check the address") from None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{place.address}/{INDEX}: is not an MDS index ({error!r}); make it again") from None
        if UNSAFE in encodings:
            raise DataError(f"{place.address}: has a column of pickles, which can run any code; write it again without")
        self._whole = functools.lru_cache(maxsize=1)(self._load)

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def sample(self, index: int, whole: bool = False, only: Sequence[str] | None = None) -> dict[str, Any]:
        """One sample by column.

        Args:
            whole: keep its shard in memory, which pays where the next ones are read too.
            only: columns to decode; None = all.
        """
        number = bisect.bisect_right(self.ends, index)
        shard = self.shards[number]
        row = index - (self.ends[number] - shard["samples"])
        if whole or shard.get("zip_data"):
            data = self._whole(number)
            begin, end = np.frombuffer(data, np.uint32, 2, 4 + 4 * row)
            return _decoded(shard, data[begin:end], only)
        name = shard["raw_data"]["basename"]
        begin, end = map(int, np.frombuffer(self.place.read(name, 4 + 4 * row, 8), np.uint32))
        return _decoded(shard, self.place.read(name, begin, end - begin), only)

    def _load(self, number: int) -> bytes:
        from streaming.base.compression import decompress

        shard = self.shards[number]
        data = self.place.read(stored_file(shard)["basename"])
        if shard.get("zip_data"):
            data = decompress(shard["compression"], data)
        if len(data) != shard["raw_data"]["bytes"]:
            raise ShardError(f"is in a shard of {len(data)} bytes, not the {shard['raw_data']['bytes']} of its index")
        return data

    def names(self) -> Iterator[tuple[str, int]]:
        """Shard file and mean size in bytes for each sample."""
        for shard in self.shards:
            size = shard["raw_data"]["bytes"] // max(1, shard["samples"])
            for row in range(shard["samples"]):
                yield f"{shard['raw_data']['basename']}[{row}]", size


def _decoded(shard: dict[str, Any], data: bytes, only: Sequence[str] | None) -> dict[str, Any]:
    from streaming.base.format.mds.encodings import mds_decode

    sizes = list(shard["column_sizes"])
    unknown = [column for column, size in enumerate(sizes) if not size]
    for column, size in zip(unknown, np.frombuffer(data, np.uint32, len(unknown)), strict=True):
        sizes[column] = int(size)
    sample, position = {}, 4 * len(unknown)
    for name, encoding, size in zip(shard["column_names"], shard["column_encodings"], sizes, strict=True):
        if only is None or name in only:
            sample[name] = mds_decode(encoding, data[position : position + size])
        position += size
    return sample
