"""Runs on two sharded ranks, kept in a real S3 server, that lose a rank, all ranks or the server at any moment."""

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from helpers.commands import TRAIN, run
from helpers.fault_proxy import FaultProxy
from helpers.forks import Forked
from helpers.object_store import ObjectStore, environment
from helpers.two_ranks import SNAPSHOTS, STEPS, arguments, assert_same_end, command
from recipe.storage import s3_client
from recipe.storage.addresses import open_place
from recipe.storage.ownership import OwnedError, Ownership
from recipe.storage.places import Place
from recipe.weights.checkpoints import newest_whole
from recipe.weights.snapshots import SnapshotReader, list_snapshots

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1400)]

SMALL_PARTS = Path(__file__).with_name("small_parts.py")
LONG = ("duration=240ba", "ema.snapshot_interval=6ba")
PREEMPTED = 75


def wait_until(condition: Callable[[], object], process: Forked, timeout: float = 200) -> None:
    """Until `condition` holds or the process has ended."""
    deadline = time.monotonic() + timeout
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for_a_snapshot(place: Place, process: Forked) -> None:
    """Until the run has stored another one; it must not end meanwhile."""
    seen = len(place.list("snapshots/"))
    wait_until(lambda: len(place.list("snapshots/")) > seen, process)
    assert process.poll() is None, process.output() + process.errors()


def assert_whole(place: Place) -> None:
    """Every listed snapshot passes its checksums."""
    for snapshot in list_snapshots(f"{place.address}/snapshots"):
        with SnapshotReader(snapshot.path) as reader:
            reader.read_all()


def finish(line: list[str], store: ObjectStore) -> None:
    """Let the run go on to its end."""
    done = run(line, env=store.environment)
    assert done.returncode == 0, done.stdout + done.stderr


def no_checkpoint_yet(place: Place) -> bool:
    return bool(place.list("snapshots/")) and not place.list("checkpoints/")


def no_metadata_yet(place: Place) -> bool:
    """Of one checkpoint the ranks' parts are there, but what makes it whole is not."""
    names = [entry.name.split("/") for entry in place.list("checkpoints/")]
    whole = {name[1] for name in names if name[-1] == ".metadata"}
    return bool({name[1] for name in names if name[-1].endswith(".distcp")} - whole)


def open_upload(place: Place) -> bool:
    bucket, prefix = place.address.removeprefix("s3://").split("/", 1)
    return bool(s3_client.client().list_multipart_uploads(Bucket=bucket, Prefix=prefix).get("Uploads"))


STATES: list[tuple[Callable[[str, str], bool], Callable[[Place], bool], Path]] = [
    (lambda method, target: method in ("PUT", "POST") and "/checkpoints/" in target, no_checkpoint_yet, TRAIN),
    (lambda method, target: method in ("PUT", "POST") and target.endswith("/.metadata"), no_metadata_yet, TRAIN),
    (lambda method, target: method == "POST" and "uploadId=" in target, open_upload, SMALL_PARTS),
]
"""The request at which the run is killed, what the store then shows, and the script that trains."""


def test_kills_at_chosen_states(object_store: ObjectStore, two_ranks: Place, digits: Path, tmp_path: Path):
    """Between snapshot and checkpoint, before a checkpoint is whole, in the middle of an upload; then one rank alone,
    and the server, at a random moment.

    The same run goes through all of it, and each start finds what the last one left.
    """
    folder = f"s3://{object_store.bucket}/killed-at-states"
    place = open_place(folder)
    for holds, state, script in STATES:
        with FaultProxy(object_store.endpoint, share=0) as proxy:
            proxy.hold = holds
            with Forked(script, *arguments(digits, folder), ranks=2, env=environment(proxy.endpoint)) as process:
                wait_until(lambda held=proxy.held: held.is_set(), process)
                assert process.poll() is None, process.output() + process.errors()
                wait_until(lambda state=state: state(place), process)
        assert state(place)
        assert_whole(place)
    newest = newest_whole(place.child("checkpoints"))
    assert newest is None or newest.batch < STEPS

    def start() -> Forked:
        return Forked(TRAIN, *arguments(digits, folder), ranks=2, env=object_store.environment)

    chance = random.Random(5)
    with start() as process:
        wait_for_a_snapshot(place, process)
        time.sleep(chance.uniform(0, 0.5))
        kill("rank", chance, process, object_store)
    assert_whole(place)
    with start() as process:
        wait_for_a_snapshot(place, process)
        kill("server", chance, process, object_store)
        assert process.wait() == 0, process.output() + process.errors()
    assert_same_end(place, two_ranks)


def kill_at_random(
    kinds: Sequence[str], chance: random.Random, start: Callable[[], Forked], store: ObjectStore, place: Place
) -> None:
    """Kill a rank, the server or all ranks, in this order, each a random moment after a new snapshot."""
    left, listed = list(reversed(kinds)), {entry.name for entry in place.list("snapshots/")}
    while left:
        with start() as process:
            wait_for_a_snapshot(place, process)
            while left and process.poll() is None:
                time.sleep(chance.uniform(0, 1.5))
                kill(left.pop(), chance, process, store)
        names = {entry.name for entry in place.list("snapshots/")}
        assert listed <= names, "a snapshot that was listed is gone"
        listed = names
        assert_whole(place)


def kill(kind: str, chance: random.Random, process: Forked, store: ObjectStore) -> None:
    if kind == "server":
        store.kill()
        time.sleep(chance.uniform(0, 2))
        store.start()
    elif kind == "rank" and process.poll() is None:
        os.kill(chance.choice(process.ranks()), signal.SIGKILL)
        assert process.wait(60) != 0
    else:
        process.kill()


@pytest.mark.soak
def test_kills_at_random_moments(object_store: ObjectStore, digits: Path, tmp_path: Path):
    """Twenty of them, in a longer run."""
    chance = random.Random(11)
    places = [open_place(f"s3://{object_store.bucket}/{name}") for name in ("long-undisturbed", "long-killed")]

    def start(place: Place) -> Forked:
        line = arguments(digits, place.address, *LONG)
        return Forked(TRAIN, *line, ranks=2, env=object_store.environment, timeout=1000)

    with start(places[0]) as process:
        assert process.wait() == 0, process.output() + process.errors()
    kinds = ["rank", "server", "server", "all", "server"] * 4
    chance.shuffle(kinds)
    kill_at_random(kinds, chance, lambda: start(places[1]), object_store, places[1])
    finish(command(digits, places[1].address, *LONG), object_store)
    assert len(places[0].list("snapshots/")) == 240 // 6 * 2
    assert_same_end(places[1], places[0])


def test_preempted_run_saves_and_goes_on(object_store: ObjectStore, two_ranks: Place, digits: Path):
    place = open_place(f"s3://{object_store.bucket}/preempted")

    def start() -> Forked:
        return Forked(TRAIN, *arguments(digits, place.address), ranks=2, env=object_store.environment)

    with start() as process:
        wait_for_a_snapshot(place, process)
        with pytest.raises(OwnedError, match="belongs to a live run"):  # nobody else may have its folder
            Ownership(place)
        os.kill(process.ranks()[1], signal.SIGUSR1)  # SIGTERM is sent in test_stopping.py
        assert process.wait(100) == PREEMPTED, process.errors()
        assert "saving and stopping after batch" in process.output() + process.errors()
    assert place.size("owner.json") is None
    assert len(place.list("snapshots/")) < SNAPSHOTS
    with start() as process:
        assert process.wait() == 0, process.output() + process.errors()
    assert_same_end(place, two_ranks)
