"""What the variables of a launcher may say, and ranks that wait for others that do not come."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from helpers.commands import TRAIN, assert_refused, free_port, run, train_arguments
from recipe import ranks
from recipe.ranks import ALONE, Launch, RanksError, find_ranks, read_launch

ALL = [*ALONE, "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE"]
WHERE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def variables(text: str) -> dict[str, str]:
    return dict(item.split("=") for item in text.split())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("RANK=3", "RANK=3, but WORLD_SIZE is not set"),
        ("LOCAL_RANK=2", "LOCAL_RANK=2, but WORLD_SIZE is not set"),
        ("NODE_RANK=1 RANK=0", "NODE_RANK=1, but WORLD_SIZE is not set"),
        ("WORLD_SIZE=4", "WORLD_SIZE=4, but not RANK, MASTER_ADDR, MASTER_PORT"),
        ("WORLD_SIZE=4 RANK=1 MASTER_ADDR=gpu07", "but not MASTER_PORT"),
        ("WORLD_SIZE=4 RANK=4 MASTER_ADDR=a MASTER_PORT=1", "RANK below WORLD_SIZE"),
        ("WORLD_SIZE=1 RANK=1", "RANK below WORLD_SIZE"),
        ("WORLD_SIZE=0", "WORLD_SIZE from 1 on"),
        ("WORLD_SIZE=1 LOCAL_RANK=3 LOCAL_WORLD_SIZE=4", "LOCAL_WORLD_SIZE up to WORLD_SIZE"),
        ("WORLD_SIZE=four", "WORLD_SIZE=four: must be a whole number"),
        ("WORLD_SIZE=-1", "WORLD_SIZE=-1: must be a whole number"),
        ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=99999", "MASTER_PORT=99999: must be from 1 to 65535"),
        ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=http", "MASTER_PORT=http: must be a whole number"),
    ],
)
def test_what_no_launcher_says(given: str, said: str):
    with pytest.raises(RanksError) as caught:
        read_launch(variables(given))
    assert said in str(caught.value) and "unset RANK WORLD_SIZE" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_launchers_say():
    assert read_launch({}) == Launch()
    assert read_launch({"RANK": "", "WORLD_SIZE": ""}) == Launch()
    assert read_launch(ALONE | WHERE) == Launch()
    found = read_launch(variables("RANK=5 WORLD_SIZE=8 LOCAL_RANK=1 LOCAL_WORLD_SIZE=4 NODE_RANK=1") | WHERE)
    assert found == Launch(5, 8, 4, "127.0.0.1", 29500)
    elsewhere = Launch(5, 8, 4, "gpu07", 29500)
    assert found.is_local and not elsewhere.is_local and Launch(1, 4, 4, "gpu07", 1).is_local


def meet(patch: pytest.MonkeyPatch, given: dict[str, str]) -> None:
    for name in ALL:
        patch.delenv(name, raising=False)
    for name, value in given.items():
        patch.setenv(name, value)
    find_ranks()


def test_torchrun_that_is_gone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ranks, "NOBODY", 0.5)
    given = variables(f"RANK=0 WORLD_SIZE=4 MASTER_ADDR=127.0.0.1 MASTER_PORT={free_port()}")
    with pytest.raises(RanksError, match="no torchrun answers at"):
        meet(monkeypatch, given | {"TORCHELASTIC_USE_AGENT_STORE": "True"})


@pytest.mark.parametrize("rank", [0, 1])
def test_other_nodes_may_come_later(rank: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """It says whom it waits for, again and again, and gives up in the end."""
    monkeypatch.setattr(ranks, "FIRST_WORD", 0.2)
    monkeypatch.setattr(ranks, "WORDS", 0.3)
    monkeypatch.setattr(ranks, "PATIENCE", 4.0)
    others = "0" if rank else "1, 2, 3"
    address = "localhost" if rank == 0 else "nobody.invalid"
    given = variables(f"RANK={rank} WORLD_SIZE=4 LOCAL_WORLD_SIZE=1 MASTER_ADDR={address} MASTER_PORT={free_port()}")
    with pytest.raises(RanksError, match=f"no ranks? {others} of 4 came to {address}"):
        meet(monkeypatch, given)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2 and all(f"rank {rank} waits for rank" in line for line in lines)


@pytest.fixture
def pythons_own_handler() -> Iterator[None]:
    """That of SIGINT, which Composer's import replaces."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("pythons_own_handler")
def test_ctrl_c_ends_the_waiting(monkeypatch: pytest.MonkeyPatch):
    given = variables(f"RANK=0 WORLD_SIZE=4 LOCAL_WORLD_SIZE=1 MASTER_ADDR=10.255.255.1 MASTER_PORT={free_port()}")
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        meet(monkeypatch, given)
    assert time.monotonic() - begin < 5


def test_a_rank_whose_first_has_ended_says_so(monkeypatch: pytest.MonkeyPatch):
    script = "import os, sys\nfrom recipe.ranks import find_ranks\nfind_ranks()\nos._exit(2)"
    given = variables(f"WORLD_SIZE=2 LOCAL_WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT={free_port()}")
    first = subprocess.Popen([sys.executable, "-c", script], env=os.environ | given | {"RANK": "0"})
    for name, value in (given | {"RANK": "1"}).items():
        monkeypatch.setenv(name, value)
    found = find_ranks()
    assert first.wait() == 2
    with pytest.raises(RanksError, match="rank 0 of this launch has ended"):
        found.hear("never")


@pytest.mark.parametrize("given", ["WORLD_SIZE=4", "RANK=0 LOCAL_RANK=1"])
def test_train_answers_at_once(given: str, tmp_path: Path):
    line = [sys.executable, str(TRAIN), *train_arguments(tmp_path / "none", tmp_path / "run")]
    done = run(line, env=dict.fromkeys(ALL, "") | variables(given), timeout=60)
    assert_refused(done, "train.py: ", "unset RANK WORLD_SIZE", given.replace(" ", ", "))
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_whole_environment_that_is_left_over(tmp_path: Path):
    lines = {
        "train.py": train_arguments(tmp_path / "none", tmp_path / "run"),
        "prepare.py": ["digits", "--out", str(tmp_path / "run")],
    }
    left = "RANK=0 LOCAL_RANK=0 WORLD_SIZE=4 LOCAL_WORLD_SIZE=4 MASTER_ADDR=127.0.0.1"

    def start(script: str) -> subprocess.CompletedProcess[str]:
        given = variables(f"{left} MASTER_PORT={free_port()}")
        return run([sys.executable, str(TRAIN.with_name(script)), *lines[script]], env=given, timeout=100)

    begin = time.monotonic()
    with ThreadPoolExecutor() as pool:  # each waits for some seconds before it gives up
        found = dict(zip(lines, pool.map(start, lines), strict=True))
    for script, done in found.items():
        assert_refused(done, f"{script}: WORLD_SIZE=4: ranks 1, 2, 3 of 4 must run on this machine", "unset RANK")
    assert time.monotonic() - begin < 60 and not (tmp_path / "run").exists()


class Watched:
    """A store that notes how many bytes were sent to it at most before it answered."""

    def __init__(self, store: Any):  # its types lack some methods
        self.store, self.under_way, self.most = store, 0, 0

    def send(self, *texts: Any) -> None:
        self.under_way += sum(len(text) for text in texts) + 40  # more than its numbers take
        self.most = max(self.most, self.under_way)

    def set(self, key: str, value: Any) -> None:
        self.send(key, value)
        self.store.set(key, value)

    def append(self, key: str, value: Any) -> None:
        self.send(key, value)
        self.store.append(key, value)

    def check(self, keys: list[str]) -> bool:
        return self.answer(self.store.check, keys)

    def get(self, key: str) -> bytes:
        return self.answer(self.store.get, key)

    def delete_key(self, key: str) -> bool:
        return self.answer(self.store.delete_key, key)

    def answer(self, ask: Callable[[Any], Any], what: Any) -> Any:
        self.send(*([what] if isinstance(what, str) else what))
        found = ask(what)
        self.under_way = 0
        return found


READ = 4096  # bytes; a request that fills a read of the store's server to the end costs the connection (torch 2.7)


def test_rank_0_waits_for_the_others_each_time():
    """A second wait is not over because the first was."""
    port = free_port()
    server = TCPStore("localhost", port, is_master=True, wait_for_workers=False)
    first, second = (ranks.Ranks(rank, 2, 2, server) for rank in range(2))
    for _ in range(2):
        waiting = threading.Thread(target=first.gather, daemon=True)
        waiting.start()
        waiting.join(2 * ranks.LOOK_SECONDS)
        assert waiting.is_alive()
        second.gather()
        waiting.join(60)
        assert not waiting.is_alive()


def test_ranks_give_each_other_data_of_any_size():
    """Through the launcher's store, whose messages are limited; in their order, and nothing stays in it."""
    port = free_port()
    server = TCPStore("localhost", port, is_master=True, wait_for_workers=False)
    stores = [Watched(store) for store in (server, *(TCPStore("localhost", port, is_master=False) for _ in range(2)))]
    members = [ranks.Ranks(rank, 3, 3, store) for rank, store in enumerate(stores)]
    before = server.num_keys()
    given = [b"zero", bytes(range(256)) * 40_000, b""]
    long = "word " * 2000
    found: dict[int, tuple[list[bytes], list[bytes], str]] = {}

    def work(rank: int) -> None:
        mine = members[rank]
        first, second = list(mine.collect(given[rank])), list(mine.collect(given[-1 - rank]))
        said = mine.announce(long if rank == 0 else "not heard")
        mine.gather()
        found[rank] = first, second, said

    threads = [threading.Thread(target=work, args=[rank], daemon=True) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)  # one that failed has shown its error, and others may wait for it
    assert found == {0: (given, given[::-1], long), 1: ([], [], long), 2: ([], [], long)}
    assert max(store.most for store in stores) < READ
    assert server.num_keys() < before + 20


def test_a_word_may_be_told_again():
    """The last one counts, whole, whatever the lengths."""
    port = free_port()
    server = TCPStore("localhost", port, is_master=True, wait_for_workers=False)
    first, second = (ranks.Ranks(rank, 2, 2, server) for rank in range(2))
    for word in ("a" * 9000, "b" * 5000, ""):
        first.tell("key", word)
        assert second.hear("key") == word
