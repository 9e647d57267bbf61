"""Caches of remote shards: what a user owns stays as it is, other data are not taken for these, and nobody waits."""

import json
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.commands import train_arguments
from helpers.small_shards import digests, write_shards
from recipe.configuration.problems import ConfigError
from recipe.configuration.reader import read_config
from recipe.configuration.schema import Config
from recipe.data.caches import MARK
from recipe.data.checks import check_data
from recipe.data.dataset import ImageDataset
from recipe.data.facts import DataError
from recipe.data.loader import PatientLoader, check_sockets, training_loader

pytestmark = [  # streaming leaves the files of the shards that it reads to be closed by the interpreter
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
LIMIT = "data.cache_limit=14kb"  # of data of 12 shards of about 1 kB


@pytest.fixture(autouse=True)
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is not a dying run, and a local disk is not a network."""
    monkeypatch.setattr("recipe.data.shared_memory.PATIENCE", 0.0)
    monkeypatch.setattr("recipe.data.loader.DOWNLOAD_RETRIES", 1)


def config_for(*overrides: str) -> Config:
    batch = ("global_batch_size=8", "duration=8ba", "data.num_workers=0")
    intervals = (f"{key}=8ba" for key in ("ema.snapshot_interval", "checkpoints.interval", "logging.interval"))
    return read_config(train_arguments(Path("none"), Path("none"), *batch, *intervals, *overrides))


def epoch(*overrides: str) -> list[int]:
    """The ids of an epoch, through the checks and the loader of a run."""
    config = config_for(*overrides)
    loader = training_loader(config, check_data(config), 8)
    return [int(id) for batch in loader for id in batch["id"]]


def refused(match: str, *overrides: str) -> None:
    with pytest.raises(DataError, match=match):
        epoch(*overrides)


def streams(*sections: dict[str, Any]) -> list[str]:
    return [f"data.streams={json.dumps([{'proportion': 1} | section for section in sections])}", "data.local=null"]


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "remote")


@pytest.fixture
def cache(tmp_path: Path, remote: Path) -> list[str]:
    return [f"data.remote={remote}", f"data.local={tmp_path / 'cache'}"]


def test_a_limit_never_deletes_the_only_copy(tmp_path: Path, remote: Path, monkeypatch: pytest.MonkeyPatch):
    removed: list[str] = []
    remove = os.remove
    monkeypatch.setattr(os, "remove", lambda path: [removed.append(str(path)), remove(path)])
    only = write_shards(tmp_path / "only", seed=1)
    before = digests(only, remote)
    mixed = streams({"local": str(only)}, {"local": str(tmp_path / "cache"), "remote": str(remote)})
    assert len(epoch(*mixed, LIMIT)) == 240
    assert digests(only, remote) == before
    gone = [path for path in removed if path.startswith(str(tmp_path))]
    assert gone and all(Path(path).parent == tmp_path / "cache" for path in gone)
    assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.mds")) <= 14 << 10


def test_a_limit_needs_a_cache(remote: Path):
    refused("data.cache_limit = 14kb: is for a cache, but no data are remote", f"data.local={remote}", LIMIT)


def test_a_limit_that_holds_no_batch_is_one_error(cache: list[str]):
    refused("data.cache_limit = 2kb: must be at least [0-9]+b", *cache, "data.cache_limit=2kb")
    refused(r"must be at least .* 32 shards .*16 processes", *cache, "data.num_workers=16", LIMIT)


def test_the_smallest_limit_is_enough(cache: list[str]):
    with pytest.raises(DataError) as error:
        epoch(*cache, "data.cache_limit=1b")
    needed = str(error.value).split("at least ")[1].split("b,")[0]
    assert sorted(epoch(*cache, f"data.cache_limit={needed}b")) == list(range(120))


def test_packed_data_that_are_the_only_copy_stay_in_any_form(tmp_path: Path):
    """streaming deletes unpacked shards whose packed form is gone, even if there is no other copy."""
    only = write_shards(tmp_path / "only", compression="zstd")
    assert len(epoch(f"data.local={only}")) == 120
    for path in only.glob("*.zstd"):
        path.unlink()
    before = digests(only)
    assert len(epoch(f"data.local={only}")) == 120
    assert digests(only) == before


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_copy_of_the_data_serves_and_stays(tmp_path: Path, compression: str | None):
    remote = write_shards(tmp_path / "remote", compression=compression)
    copy = shutil.copytree(remote, tmp_path / "copy")
    before = digests(copy, remote)
    assert len(epoch(f"data.remote={remote}", f"data.local={copy}")) == 120
    assert digests(copy, remote).items() >= before.items()
    refused("data.cache_limit: .*did not fetch", f"data.remote={remote}", f"data.local={copy}", LIMIT)
    assert digests(copy, remote).items() >= before.items()


@pytest.mark.parametrize("how", ["same", "link", "relative", "slash"])
def test_a_cache_that_is_the_data_set_itself(how: str, tmp_path: Path, remote: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "link").symlink_to(remote)
    monkeypatch.chdir(tmp_path)
    local = {"same": str(remote), "link": "link", "relative": "./x/../remote", "slash": f"{remote}/"}[how]
    (tmp_path / "x").mkdir()
    before = digests(remote)
    refused("is the folder data.remote; set data.remote=null", f"data.remote={remote}", f"data.local={local}", LIMIT)
    assert digests(remote) == before


def test_streams_in_one_folder_by_two_names(tmp_path: Path, remote: Path):
    only = write_shards(tmp_path / "only")
    (tmp_path / "link").symlink_to(only)
    two = streams({"local": str(only)}, {"local": str(tmp_path / "link"), "remote": str(remote)})
    refused(r"data.streams\[1\].local .*link: is the same folder as data.streams\[0\].local", *two)


CHANGES: dict[str, Callable[[Path], object]] = {
    "full": lambda cache: None,
    "emptied, with its index": lambda cache: [path.unlink() for path in cache.glob("*.mds")],
    "without its index": lambda cache: (cache / "index.json").unlink(),
    "without its note": lambda cache: (cache / MARK).unlink(),
    "only shards": lambda cache: [(cache / name).unlink() for name in ("index.json", MARK)],
}


@pytest.mark.parametrize("state", CHANGES)
@pytest.mark.parametrize("hashes", [("sha1",), ()])
def test_data_prepared_anew_are_not_taken_from_an_old_cache(
    state: str, hashes: tuple[str, ...], tmp_path: Path, cache: list[str]
):
    """Without digests in the index, that of raw images of one size is the same whatever they show: the facts differ."""
    remote = tmp_path / "remote"
    for seed in (0, 1):
        shutil.rmtree(remote)
        write_shards(remote, seed, hashes=hashes, facts={"mean": [seed / 10]})
        if seed == 0:
            epoch(*cache)
            CHANGES[state](tmp_path / "cache")
    before = digests(tmp_path)
    if state == "without its note" and not hashes:
        pytest.skip("then nothing tells them apart")
    refused(r"data.local .*cache: holds (another data set|files without an index)", *cache)
    assert digests(tmp_path) == before


def test_a_cache_of_the_same_data_goes_on(tmp_path: Path, cache: list[str]):
    order = epoch(*cache)
    for path in sorted((tmp_path / "cache").glob("*.mds"))[::2]:
        path.unlink()
    assert epoch(*cache, LIMIT) == order


def test_a_cached_shard_that_was_cut_short(tmp_path: Path, cache: list[str]):
    epoch(*cache)
    path = tmp_path / "cache" / "shard.00003.mds"
    path.write_bytes(path.read_bytes()[:100])
    refused(r"shard.00003.mds has 100 bytes, but index.json says .*; delete this file", *cache)


@pytest.mark.parametrize("name", ["holiday.jpg", "shard.00000.mds", "sub/notes.txt"])
@pytest.mark.parametrize("limit", [[], [LIMIT]])
def test_a_cache_in_a_folder_with_other_files(name: str, limit: list[str], tmp_path: Path, cache: list[str]):
    path = tmp_path / "cache" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    refused("holds files without an index.json, such as", *cache, *limit)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("how", ["other data", "cut short", "gone"])
@pytest.mark.parametrize("workers", [0, 2])
def test_shards_changed_while_a_run_goes_on(how: str, workers: int, tmp_path: Path, cache: list[str]):
    """An error that names the shard, of threads and of workers, which leaves no wrong shard in the cache."""
    config = config_for(*cache, f"data.num_workers={workers}")
    loader = training_loader(config, check_data(config), 8)
    remote = tmp_path / "remote"
    for path in remote.glob("*.mds"):
        data = path.read_bytes()
        {
            "other data": lambda path=path, data=data: path.write_bytes(data[:-1] + bytes([data[-1] ^ 1])),
            "cut short": lambda path=path, data=data: path.write_bytes(data[:-1]),
            "gone": path.unlink,
        }[how]()
    started = time.monotonic()
    with pytest.raises(DataError, match=r"remote: shard\.\d+\.mds cannot be fetched") as error:
        list(loader)
    assert "\n" not in str(error.value)
    assert time.monotonic() - started < 60
    assert not list((tmp_path / "cache").glob("*.mds"))


def test_the_cache_of_a_live_run(tmp_path: Path, cache: list[str]):
    config = config_for(*cache)
    loader = training_loader(config, check_data(config), 8)
    before = digests(tmp_path)
    refused("data.local .*cache: is the cache of a run that is going on here", *cache)
    assert digests(tmp_path) == before
    del loader


def test_a_shard_that_is_deleted_again_is_fetched_again(cache: list[str], tmp_path: Path):
    """As by another run's limit. streaming's threads would wait for it for ever."""
    config = config_for(*cache, LIMIT)
    loader = training_loader(config, check_data(config), 8)
    dataset: Any = loader.dataset
    assert isinstance(dataset, ImageDataset)
    done = threading.Event()

    def delete() -> None:
        while not done.is_set():
            for shard in range(dataset.num_shards):
                if dataset._shard_states[shard] == 3:  # there, and not being fetched
                    dataset.evict_shard(shard)
            time.sleep(0.003)

    threading.Thread(target=delete, daemon=True).start()
    seen, problem = [], ""
    try:
        seen = [int(id) for batch in loader for id in batch["id"]]
    except DataError as error:
        problem = str(error)
    done.set()
    assert sorted(seen) == list(range(120)) or "raise data.cache_limit" in problem


def test_waiting_for_a_batch_is_told_and_timed(cache: list[str], monkeypatch: pytest.MonkeyPatch, caplog):
    monkeypatch.setattr("recipe.data.loader.PATIENCE", 0.05)
    config = config_for(*cache)
    loader = training_loader(config, check_data(config), 8)
    slow = threading.Event()
    monkeypatch.setattr(ImageDataset, "get_item", lambda self, id, retry=7: slow.wait(0.5) or {"id": id})
    waited: list[float] = []
    threading.Timer(0.3, lambda: waited.append(loader.waited())).start()
    assert isinstance(loader, PatientLoader) and loader.waited() == 0.0
    next(iter(loader))
    assert 0.1 < waited[0] < 10 and loader.waited() == 0.0
    assert "no batch has come from the data" in caplog.text


def test_a_temporary_folder_too_long_for_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """At the longest that is allowed a socket can be made, and one more byte is refused."""
    import multiprocessing.connection

    base = tempfile.mkdtemp(dir="/tmp")
    for length, allowed in ((75, True), (76, False)):
        folder = Path(base, "x" * (length - len(base) - 1))
        folder.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(folder))
        if allowed:
            check_sockets(config_for("data.num_workers=2").data)
            name = str(folder / "pymp-12345678" / "listener-12345678")
            os.mkdir(os.path.dirname(name))
            multiprocessing.connection.Listener(name).close()
        else:
            with pytest.raises(DataError, match=r"TMPDIR .*: has 76 bytes, .* may have at most"):
                check_sockets(config_for("data.num_workers=2").data)
            check_sockets(config_for("data.num_workers=0").data)
    shutil.rmtree(base)


class Arrangement:
    """A user's files in some order on a disk, and a run that is to read them, all drawn at random."""

    def __init__(self, folder: Path, seed: int):
        self.rng = random.Random(seed)
        self.home, self.folder = folder / "home", folder
        self.home.mkdir(parents=True)
        self.sets = [self._data_set(f"set{number}") for number in range(self.rng.randint(1, 3))]
        for _ in range(self.rng.randint(0, 3)):
            self._odd_file()
        self.said = self._streams() if self.rng.random() < 0.6 else self._single()
        if self.rng.random() < 0.5:
            self.said.append(f"data.cache_limit={self.rng.choice(['1kb', '10kb', '14kb', '1mb'])}")

    def _data_set(self, name: str) -> Path:
        compression = self.rng.choice([None, None, "zstd"])
        path = write_shards(self.home / name, self.rng.randint(0, 1), compression=compression)
        if compression and self.rng.random() < 0.5:  # unpacked, and the packed files deleted
            from streaming.base.compression import decompress

            for packed in path.glob("*.zstd"):
                packed.with_suffix("").write_bytes(decompress("zstd", packed.read_bytes()))
                packed.unlink()
        return path

    def _odd_file(self) -> None:
        folder = self.rng.choice([*self.sets, self.home, self.home / "photos"])
        folder.mkdir(exist_ok=True)
        (folder / self.rng.choice(["a.jpg", "shard.00000.mds.bak", "stats.txt", ".hidden"])).write_text("mine")

    def _local(self) -> str:
        """A folder for a cache: new, empty, a user's, a copy of a data set, a part of one, or one by another name."""
        kind = self.rng.choice(
            ["new"] * 6 + ["empty", "set", "copy", "copy", "part", "link", "photos", "index", "stale"]
        )
        fresh = self.folder / f"cache{self.rng.randrange(10**6)}"
        chosen = self.rng.choice(self.sets)
        if kind == "set":
            return str(chosen)
        if kind == "photos":
            (self.home / "photos").mkdir(exist_ok=True)
            (self.home / "photos" / "b.jpg").write_text("mine too")
            return str(self.home / "photos")
        if kind == "empty":
            fresh.mkdir()
        elif kind in ("copy", "part", "index"):
            fresh = self.home / fresh.name
            shutil.copytree(chosen, fresh)
            shards = sorted(fresh.glob("*.mds*"))
            for path in {"copy": [], "part": shards[::2], "index": shards}[kind]:
                path.unlink()
        elif kind == "link":
            fresh.symlink_to(chosen)
        elif kind == "stale":
            write_shards(self.home / fresh.name, seed=7)
            fresh = self.home / fresh.name
        return str(fresh)

    def _single(self) -> list[str]:
        if self.rng.random() < 0.3:
            return [f"data.local={self.rng.choice(self.sets)}"]
        return [f"data.remote={self.rng.choice(self.sets)}", f"data.local={self._local()}"]

    def _streams(self) -> list[str]:
        sections: list[dict[str, Any]] = []
        for chosen in map(str, self.rng.choices(self.sets, k=self.rng.randint(1, 2))):
            sections.append(
                {"local": chosen} if self.rng.random() < 0.5 else {"local": self._local(), "remote": chosen}
            )
        return streams(*sections)


def arrange(folder: Path, seed: int) -> bool:
    """Read an epoch of an arrangement, unless it is refused, which is returned; nothing of the user's has changed."""
    arrangement = Arrangement(folder, seed)
    before = digests(arrangement.home)
    problem = ""
    try:
        for _ in range(2):  # the second time, caches are there
            epoch(*arrangement.said)
    except (DataError, ConfigError) as error:
        problem = str(error)
    assert not problem or "data." in problem or "cannot be fetched" in problem, problem
    after = digests(arrangement.home)
    assert after.items() >= before.items(), (seed, arrangement.said, sorted(before.items() - after.items()))
    return bool(problem)


def arrangements(tmp_path: Path, seeds: range) -> None:
    outcomes = [arrange(tmp_path / str(seed), seed) for seed in seeds]
    assert len(outcomes) < 20 or 0.2 < np.mean(outcomes) < 0.8, "the arrangements say nothing"


def test_nothing_of_a_users_changes(tmp_path: Path):
    arrangements(tmp_path, range(6))


@pytest.mark.soak
def test_nothing_of_a_users_changes_in_200_arrangements(tmp_path: Path):
    arrangements(tmp_path, range(1000, 1200))
