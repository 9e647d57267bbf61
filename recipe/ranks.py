"""The processes of one launch (composer, torchrun): what its variables say, and how the ranks meet and talk."""

import datetime
import itertools
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from recipe.command_line import UserError
from recipe.processors import processors

LOOK_SECONDS = 0.2  # seconds between looks at what others wrote; a launcher ends this rank if one of them fails
PATIENCE = 900.0  # seconds that the other ranks of a launch may come later than this one: nodes start at their own pace
FIRST_WORD, WORDS = 10.0, 30.0  # seconds until a waiting rank says what it waits for, and until it says so again
NOBODY = 8.0  # seconds after which ranks that must be on this machine, and are not, will not come
PIECE = 3 << 10  # bytes that are under way to the store at once, see `Ranks._send`
PART = 4 << 20  # bytes under one key of the store, which refuses values of more than 8 MiB
CONNECT = 15.0  # seconds that a connection to an address that answers may take
ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "NODE_RANK": "0"}
WAY_OUT = (
    f"start all ranks with composer -n N or torchrun; if the variables are left over from another launch: unset "
    f"{' '.join([*ALONE, 'MASTER_ADDR', 'MASTER_PORT', 'TORCHELASTIC_USE_AGENT_STORE'])}"
)
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
    rounds: Iterator[int] = field(default_factory=itertools.count, repr=False, compare=False)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, chunks: Sequence[T]) -> Sequence[T]:
        """The chunks that this rank writes: fixed, so that what an interrupted launch left is found again."""
        return chunks[self.rank :: self.size]

    def tell(self, key: str, word: str) -> None:
        """Write a word for the other ranks under a key."""
        if self.size > 1:
            self._send(key, word.encode())

    def hear(self, key: str) -> str:
        """The word under a key; waits until some rank has written it."""
        return b"".join(self._parts(key)).decode()

    def _send(self, key: str, data: bytes) -> None:
        """Store data under a key: its parts first, then their number, which says that they are there.

        The store's server (libuv, torch 2.7) reads into buffers of 4096 bytes, and takes one that was filled to the
        end with nothing behind it for the end of the connection. So fewer are under way at any time: each piece waits
        for an answer, which `set` and `append` do not have.
        """
        parts = range(0, len(data), PART)
        with _while_rank_0_lives():
            for part, start in enumerate(parts):
                write = self.store.set  # what is left from an earlier call goes
                for piece in range(start, min(start + PART, len(data)), PIECE):
                    write(f"{key}/{part}", data[piece : min(piece + PIECE, start + PART)])
                    self.store.check([key])
                    write = self.store.append
            self.store.set(key, str(len(parts)))
            self.store.check([key])

    def _parts(self, key: str, last: bool = False) -> Iterator[bytes]:
        """What some rank sent under a key, once it is there; the `last` who asks for it removes it from the store."""
        with _while_rank_0_lives():
            while not self.store.check([key]):  # store.wait could not be interrupted
                time.sleep(LOOK_SECONDS)
            for part in range(int(self.store.get(key))):
                yield self.store.get(f"{key}/{part}")
                if last:
                    self.store.delete_key(f"{key}/{part}")  # it would stay in rank 0's memory

    def gather(self) -> None:
        """Rank 0 waits here until all others are here too; these need not wait. All must call it in the same order."""
        key = f"gather/{next(self.rounds)}"
        if not self.first:
            self.tell(f"{key}/{self.rank}", "")
        for rank in range(1, self.size) if self.first else ():
            self.hear(f"{key}/{rank}")

    def collect(self, data: bytes) -> Iterator[bytes]:
        """On rank 0 what each rank gives, in their order and one at a time; on the others, which do not wait, nothing.

        All ranks must call it and `announce` in the same order.
        """
        key = f"collect/{next(self.rounds)}"
        if not self.first:
            self._send(f"{key}/{self.rank}", data)
            return iter(())
        others = (b"".join(self._parts(f"{key}/{rank}", last=True)) for rank in range(1, self.size))
        return itertools.chain([data], others)

    def announce(self, word: str) -> str:
        """What rank 0 gives, on all ranks. It must not end before they have it: end with `gather`."""
        key = f"announce/{next(self.rounds)}"
        if self.first:
            self.tell(key, word)
            return word
        return self.hear(key)

    def processors(self) -> int:
        """How many of this machine's are for this rank."""
        return max(1, processors() // self.local_size)


@contextmanager
def _while_rank_0_lives() -> Iterator[None]:
    """It serves the store, unless torchrun does."""
    try:
        yield
    except RuntimeError:
        raise RanksError("rank 0 of this launch has ended; its own message says why") from None


def find_ranks() -> Ranks:
    """The ranks that the environment describes, once all are there; one alone without a launcher.

    Raises:
        RanksError: variables of a launcher are missing or contradict each other, or the other ranks do not come.
    """
    launch = read_launch(os.environ)
    return Ranks() if launch.size == 1 else Ranks(launch.rank, launch.size, launch.local_size, _meet(launch))


@dataclass(frozen=True)
class Launch:
    """What the variables of a launcher say; `address` and `port` are where rank 0 is met."""

    rank: int = 0
    size: int = 1
    local_size: int = 1
    address: str = ""
    port: int = 0
    has_agent: bool = False  # torchrun itself answers at the address, before any rank is started

    @property
    def is_local(self) -> bool:
        """Whether all ranks must be on this machine."""
        loopback = self.address in ("localhost", "::1") or self.address.startswith("127.")
        return self.local_size == self.size or loopback

    @property
    def where(self) -> str:
        return f"{self.address}:{self.port}"


def read_launch(environment: Mapping[str, str]) -> Launch:
    """What the variables say. Raises RanksError if they cannot come from one launcher."""
    given = {name: environment[name] for name in ALONE if environment.get(name)}
    numbers = {name: _number(name, given.get(name, default)) for name, default in ALONE.items()}
    rank, size = numbers["RANK"], numbers["WORLD_SIZE"]
    local_rank, local_size = numbers["LOCAL_RANK"], numbers["LOCAL_WORLD_SIZE"]
    said = ", ".join(f"{name}={value}" for name, value in given.items())
    if "WORLD_SIZE" not in given and any(given[name] != ALONE[name] for name in given):
        raise RanksError(f"{said}, but WORLD_SIZE is not set: no launcher says only this; {WAY_OUT}")
    if size < 1 or rank >= size or local_size > size or local_rank >= max(local_size, 1):
        raise RanksError(
            f"{said}: a launch has WORLD_SIZE from 1 on, RANK below WORLD_SIZE, LOCAL_WORLD_SIZE up to WORLD_SIZE and "
            f"LOCAL_RANK below LOCAL_WORLD_SIZE; {WAY_OUT}"
        )
    if size == 1:
        return Launch()
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if missing:
        raise RanksError(f"{said}, but not {', '.join(missing)}: the ranks cannot meet; {WAY_OUT}")
    port = _number("MASTER_PORT", environment["MASTER_PORT"])
    if not 0 < port < 2**16:
        raise RanksError(f"MASTER_PORT={port}: must be from 1 to 65535; {WAY_OUT}")
    agent = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Launch(rank, size, local_size, environment["MASTER_ADDR"], port, agent)


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise RanksError(f"{name}={text}: must be a whole number, as launchers set it; {WAY_OUT}")
    return int(text)


def _meet(launch: Launch) -> Any:
    """The key-value store of a launch, once all its ranks are there. Says what it waits for; Ctrl-C ends it.

    torch's own rendezvous waits for 5 minutes without a word, inside C++, where no signal of Python's arrives.
    """
    if launch.has_agent or launch.rank > 0:
        _wait_for_answer(launch, _Waiting(launch))
    store = _connect(launch)
    waiting = _Waiting(launch)
    with _while_rank_0_lives():
        store.set(f"here/{launch.rank}", "")
        while missing := [rank for rank in range(launch.size) if not store.check([f"here/{rank}"])]:
            waiting.look(missing)
    return store


def _wait_for_answer(launch: Launch, waiting: "_Waiting") -> None:
    """Until somebody listens where rank 0 or torchrun is to be met."""
    while True:
        try:
            with socket.create_connection((launch.address, launch.port), timeout=2):
                return
        except OSError:
            if launch.has_agent and waiting.seconds() > NOBODY:
                raise RanksError(
                    f"WORLD_SIZE={launch.size}: no torchrun answers at {launch.where} for this launch; {WAY_OUT}"
                ) from None
            waiting.look([0])


def _connect(launch: Launch) -> Any:
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    serves = launch.rank == 0 and not launch.has_agent
    try:
        return TCPStore(
            "localhost" if serves else launch.address,  # an address of nobody would be tried for long, inside C++
            launch.port,
            launch.size,
            is_master=serves,
            timeout=datetime.timedelta(seconds=CONNECT),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except (RuntimeError, ValueError) as error:
        what = "serve" if serves else "be reached"
        reason = " ".join(str(error).split())[:200]
        raise RanksError(
            f"WORLD_SIZE={launch.size}: rank 0 cannot {what} at {launch.where} ({reason}); {WAY_OUT}"
        ) from None


class _Waiting:
    """How long a rank waits for others, and what it says meanwhile."""

    def __init__(self, launch: Launch):
        self.launch = launch
        self.started = time.monotonic()
        self.next_word = FIRST_WORD

    def seconds(self) -> float:
        return time.monotonic() - self.started

    def look(self, missing: Sequence[int]) -> None:
        """Sleep for a moment; now and then say who is missing. Raises RanksError if they will not come."""
        launch, seconds = self.launch, self.seconds()
        names = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        who = f"{'rank' if len(missing) == 1 else 'ranks'} {names} of {launch.size}"
        if seconds > NOBODY and launch.is_local and _only_rank_here(launch):
            raise RanksError(f"WORLD_SIZE={launch.size}: {who} must run on this machine, and none does; {WAY_OUT}")
        if seconds > PATIENCE:
            raise RanksError(f"WORLD_SIZE={launch.size}: no {who} came to {launch.where} in {seconds:.0f} s; {WAY_OUT}")
        if seconds > self.next_word:
            self.next_word += WORDS
            text = f"rank {launch.rank} waits for {who} at {launch.where} (WORLD_SIZE={launch.size}); {WAY_OUT}"
            print(text, file=sys.stderr, flush=True)
        time.sleep(LOOK_SECONDS)


def _only_rank_here(launch: Launch) -> bool:
    """Whether no other process of this machine was started as a rank of the same launch."""
    if _started_as("self", launch) != launch.rank:
        return False  # the variables were set after the start of the process, by one that forks its ranks
    ranks = {_started_as(path.parent.name, launch) for path in Path("/proc").glob("[0-9]*/environ")}
    return not ranks - {launch.rank, None}


def _started_as(process: str, launch: Launch) -> int | None:
    """The rank of this launch that a process was started as, None if it was not."""
    try:
        items = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return None  # another user's, or it has just ended
    found = dict(item.split(b"=", 1) for item in items if b"=" in item)
    same = found.get(b"MASTER_PORT") == str(launch.port).encode() and b"RANK" in found
    return int(found[b"RANK"]) if same and found[b"RANK"].isdigit() else None
