"""Several processes of one launch (composer, torchrun) share the chunks of a preparation; each may have a GPU."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from recipe.command_line import UserError

LOOK_SECONDS = 0.2  # seconds between looks at what others wrote; a launcher ends this rank if one of them fails
T = TypeVar("T")


class RanksError(UserError):
    """Ranks of a launch that cannot meet; the message says why."""


@dataclass(frozen=True)
class Ranks:
    """This process among `size`; rank 0 decides, merges and speaks.

    They write to each other through the launcher's key-value store, since files beside the shards could be left from
    another launch. There is no process group, which would need a backend for the device.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1  # ranks on this machine
    store: Any = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, chunks: Sequence[T]) -> Sequence[T]:
        """The chunks that this rank writes: fixed, so that what an interrupted launch left is found again."""
        return chunks[self.rank :: self.size]

    def tell(self, key: str, word: str) -> None:
        """Write a word for the other ranks under a key."""
        if self.size > 1:
            self.store.set(key, word)

    def hear(self, key: str) -> str:
        """The word under a key; waits until some rank has written it."""
        while not self.store.check([key]):  # store.wait could not be interrupted
            time.sleep(LOOK_SECONDS)
        return self.store.get(key).decode()

    def gather(self) -> None:
        """Rank 0 waits here until all others are here too; these need not wait."""
        if not self.first:
            self.tell(f"prepare/done/{self.rank}", "")
        for rank in range(1, self.size) if self.first else ():
            self.hear(f"prepare/done/{rank}")

    def processors(self) -> int:
        """How many of this machine's are for this rank."""
        return max(1, len(os.sched_getaffinity(0)) // self.local_size)


def find_ranks() -> Ranks:
    """The ranks that the environment describes; one alone without a launcher.

    Raises:
        RanksError: variables of a launcher are missing or the other ranks cannot be reached.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        return Ranks()
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, number = next(rendezvous("env://"))
        return Ranks(rank, number, int(os.environ.get("LOCAL_WORLD_SIZE", "1")), store)
    except (ValueError, RuntimeError, KeyError) as error:
        raise RanksError(
            f"WORLD_SIZE {size}: the ranks cannot meet ({' '.join(str(error).split())[:200]}); start them with "
            "composer -n N or torchrun, which set RANK, MASTER_ADDR and MASTER_PORT"
        ) from None
