"""The folders in which remote shards are kept on this machine, and what of them may ever be deleted.

A cache is a folder that was empty, or was not there, when this recipe took it: a note, `MARK`, says so and names the
data set. Only from such a folder does a cache limit delete shards. A folder that already holds the same data set, for
example a copy of it, is read from and completed, but nothing in it is ever deleted. Any other folder is refused.
"""

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from streaming.base.util import bytes_to_int

from recipe.data.facts import DataError
from recipe.data.index import INDEX, OpenedSource, Shard, Source, files_of

MARK = ".edm2-cache.json"
IGNORED = ("lost+found",)  # of a file system whose top folder is the cache
FEWEST_SHARDS = 4  # that a limited cache must hold
SHARDS_OF_READER = 2  # one that it reads and one that it fetches


@dataclass(frozen=True)
class RemoteData:
    """Remote shards as rank 0 found them, for the machines that keep them.

    Attributes:
        shards, digest, identity: as of `OpenedSource`.
        limited: whether there is a cache limit, which deletes shards.
    """

    source: Source
    shards: Sequence[Shard]
    digest: str
    identity: str
    limited: bool

    @staticmethod
    def of(opened: OpenedSource, limited: bool) -> "RemoteData":
        return RemoteData(opened.source, opened.shards, opened.digest, opened.identity, limited)

    @property
    def folder(self) -> Path:
        return Path(self.source.local)

    def is_ours(self) -> bool:
        """Whether the cache is a folder that this recipe took empty for this data set."""
        return self._mark() == self.identity

    def check(self) -> None:
        """Look at the folder that is to hold the shards on this machine; nothing is changed.

        Raises:
            DataError: it is the data set itself, or holds another one, an earlier version of it or other files; or
                shards in it would be deleted that were not fetched by this recipe.
        """
        source, key = self.source, f"{self.source.key}.local {self.source.local}"
        assert source.remote is not None
        if os.path.realpath(source.remote) == os.path.realpath(self.folder):
            raise DataError(f"{key}: is the folder {source.key}.remote; set {source.key}.remote=null to read it there")
        if self.folder.exists() and not self.folder.is_dir():
            raise DataError(f"{key}: is a file, but must be a folder for the shards of {source}; name another")
        found, mark = self._names(), self._mark()
        if not found:
            return
        index = self._index_digest()
        if mark is None and index is None:
            raise DataError(
                f"{key}: holds files without an {INDEX}, such as {found[0]}, and a cache needs a folder of its own; "
                "name an empty one"
            )
        if index not in (None, self.digest) or mark not in (None, self.identity):
            raise DataError(
                f"{key}: holds another data set than {source}, or an earlier version of it, which was prepared anew "
                "since; name an empty folder, or delete this one if it is only a cache"
            )
        self._check_sizes(key)
        if self.limited and mark is None:
            raise DataError(
                f"data.cache_limit: {key} holds shards that this recipe did not fetch, and a limit deletes shards; "
                "name an empty folder, or set data.cache_limit=null"
            )

    def take(self) -> None:
        """Make the folder and note that it is this recipe's, if it is empty; for one rank of each machine."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._names():
            return
        temporary = self.folder / f".tmp-{secrets.token_hex(8)}"
        temporary.write_text(json.dumps({"identity": self.identity, "remote": self.source.remote}))
        os.replace(temporary, self.folder / MARK)

    def check_again(self) -> None:
        """Raises DataError if streaming has fetched another index than the one that was read before."""
        if self._index_digest() != self.digest:
            raise DataError(
                f"{self.source}: was prepared anew while the run began; start it again, with an empty folder as "
                f"{self.source.key}.local"
            )

    def _names(self) -> list[str]:
        """What lies in the folder, but for what this recipe is writing at this moment."""
        with contextlib.suppress(FileNotFoundError):
            names = os.listdir(self.folder)
            return sorted(name for name in names if name not in IGNORED and not name.startswith(".tmp-"))
        return []

    def _mark(self) -> str | None:
        """What the folder's note says; None if there is none."""
        try:
            return str(json.loads((self.folder / MARK).read_bytes())["identity"])
        except (OSError, ValueError, KeyError, TypeError):
            return None  # also what is no note of this recipe

    def _index_digest(self) -> str | None:
        index = self.folder / INDEX
        return hashlib.sha256(index.read_bytes()).hexdigest() if index.is_file() else None

    def _check_sizes(self, key: str) -> None:
        for shard in self.shards:
            for entry in files_of(shard):
                path = self.folder / entry["basename"]
                if path.is_file() and path.stat().st_size != entry["bytes"]:
                    raise DataError(
                        f"{key}: {entry['basename']} has {path.stat().st_size} bytes, but {INDEX} says "
                        f"{entry['bytes']}; delete this file, so that it is fetched again"
                    )


def check_limit(limit: str, opened: Sequence[OpenedSource], readers: int) -> None:
    """Raises DataError if a cache limit is too small for the shards that so many readers of a machine need at once."""
    remote = [each for each in opened if each.source.remote is not None]
    if not remote:
        raise DataError(
            f"data.cache_limit = {limit}: is for a cache, but no data are remote, and local data are never deleted; "
            "set data.cache_limit=null"
        )
    largest = max(sum(entry["bytes"] for entry in files_of(shard)) for each in remote for shard in each.shards)
    count = max(FEWEST_SHARDS, SHARDS_OF_READER * readers)
    needed = count * largest + sum(each.index_bytes for each in remote)
    if bytes_to_int(limit) < needed:
        raise DataError(
            f"data.cache_limit = {limit}: must be at least {needed}b, for an index and {count} shards of up to "
            f"{largest} bytes ({readers} processes of a machine read and fetch them); raise it, lower "
            "data.num_workers, or prepare the data with a smaller --shard-size"
        )
