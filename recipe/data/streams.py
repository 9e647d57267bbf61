"""One data set as streaming reads it, changed so that it deletes nothing but what this recipe fetched."""

import logging
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from streaming import Stream
from streaming.base.format import Reader

from recipe.data.index import Shard, Source, stored_file
from recipe.storage import s3_errors

log = logging.getLogger(__name__)
HASH = "sha1"  # that prepare.py notes of each shard by default
TRIES_IF_REFUSED = 3  # to fetch a file, where only other keys or another place would help


class KeptStream(Stream):
    """A stream that leaves files alone, and shards that are not whole too.

    streaming deletes files of a folder in two more places than its cache limit: packed shards whose unpacked form is
    there or is made, and unpacked ones without their packed form, even if the folder is all there is of the data.

    Args:
        source: the data set.
        ours: whether the folder `local` is a cache that this recipe took empty; only then is anything deleted there.
        verify: compare each shard that comes with its digest in the index.
        proportion: its share; None = it is the only data set.
    """

    def __init__(self, source: Source, ours: bool, verify: bool = False, proportion: float | None = None):
        share: dict[str, Any] = {} if proportion is None else {"proportion": proportion}
        super().__init__(
            remote=source.remote,
            local=source.local,
            keep_zip=not ours,
            validate_hash=HASH if verify and source.remote is not None else None,
            **share,
        )
        self.ours = ours
        self.bytes_at_first = 0

    def set_up_local(self, shards: list[Reader], cache_usage_per_shard: NDArray[np.int64]) -> None:
        """See which shards are there: in any form, as the other one is made or fetched when it is needed."""
        names = {entry.name for entry in os.scandir(self.local)}
        for number, shard in enumerate(shards):
            found = [part.bytes for pair in shard.file_pairs for part in pair if part and part.basename in names]
            cache_usage_per_shard[number] = sum(found)
        self.bytes_at_first = int(cache_usage_per_shard.sum()) + self.get_index_size()

    def _download_file(self, from_basename: str, to_basename: str | None = None) -> str:
        """Fetch a file from the remote folder; returns its path.

        Says so when it has to be tried again, where streaming would be silent for minutes, and gives up soon where
        keys are refused or the file is missing. Each try begins with a new client, and so with renewed keys.
        """
        remote = None if self.remote is None else os.path.join(self.remote, self.split, from_basename)
        local = os.path.join(self.local, self.split, to_basename or from_basename)
        failed = 0
        while True:
            try:
                self._downloader.download(remote, local, self.download_timeout)
                return local
            except Exception as error:  # of each kind of storage
                self._downloader.clean_up()
                failed += 1
                if failed >= (TRIES_IF_REFUSED if _lasts(error) else self.download_retry):
                    raise
                pause = 2 ** (failed - 1) + random.random() / 2
                why = s3_errors.reason(error)
                log.warning("%s: not fetched (%s); try %d begins in %.0f s", remote, why, failed + 1, pause)
                time.sleep(pause)

    def prepare_shard(self, shard: Reader) -> int:
        """Fetch and unpack what is missing of a shard. What came of a shard that turns out damaged is removed again."""
        paths = [Path(self.local) / part.basename for pair in shard.file_pairs for part in pair if part]
        missing = [path for path in paths if not path.exists()]
        try:
            delta = super().prepare_shard(shard)
            for raw, _ in shard.file_pairs:
                path = Path(self.local) / raw.basename
                if path.stat().st_size != raw.bytes:
                    raise ValueError(f"{path}: has {path.stat().st_size} bytes and not the {raw.bytes} of the index")
        except Exception:
            for path in missing:
                path.unlink(missing_ok=True)
            raise
        return delta


def _lasts(error: Exception) -> bool:
    """Whether the same try would most likely fail again: for what does not exist, or with keys that are refused."""
    if isinstance(error, s3_errors.boto.ClientError):
        return s3_errors.status(error) in (400, 401, 403, 404)
    return isinstance(error, FileNotFoundError)


def has_hashes(shards: Sequence[Shard]) -> bool:
    """Whether the index notes the digest of each shard."""
    return all(HASH in stored_file(shard).get("hashes", {}) for shard in shards)
