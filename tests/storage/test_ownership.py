"""A run's folder has one live owner."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from helpers.spawned import claim, claim_and_wait
from recipe.storage import ownership
from recipe.storage.addresses import open_place
from recipe.storage.local import LocalPlace
from recipe.storage.ownership import LEASE, NAME, OwnedError, Ownership
from recipe.storage.places import Place

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "local":
        return LocalPlace(tmp_path)
    return open_place(request.getfixturevalue("bucket_folder"))


def owner(place: Place) -> dict[str, Any]:
    return json.loads(place.read(NAME))


def note(place: Place, **changes: Any) -> None:
    """An owner's file of this very process, with something changed."""
    held = Ownership(place)
    facts = owner(place)
    held.release()
    place.write(NAME, json.dumps(facts | changes).encode())


def test_refused_while_the_owner_lives(place: Place):
    held = Ownership(place)
    with pytest.raises(OwnedError, match=f"process {os.getpid()}"):
        Ownership(place)
    held.release()
    assert place.size(NAME) is None
    Ownership(place).release()


def test_a_killed_owner_is_succeeded_at_once(place: Place):
    said = SPAWN.Queue()
    process = SPAWN.Process(target=claim_and_wait, args=(place.address, said))
    process.start()
    said.get(timeout=60)
    with pytest.raises(OwnedError):
        Ownership(place)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    Ownership(place).release()


def test_one_of_several_wins(place: Place):
    gate, said = SPAWN.Event(), SPAWN.Queue()
    processes = [SPAWN.Process(target=claim, args=(place.address, gate, said)) for _ in range(4)]
    for process in processes:
        process.start()
    time.sleep(3)
    gate.set()
    assert sum(said.get(timeout=60) for _ in processes) == 1
    for process in processes:
        process.join()


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({"started": "1"}, True),  # the number of the process was given to another one
        ({"machine": "another"}, False),
        ({"machine": "another", "job": "77"}, True),  # an earlier start of the same Slurm job
        ({"machine": "another", "job": "78"}, False),
    ],
)
def test_whose_claim_counts(changes: dict[str, str], taken: bool, place: Place, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    note(place, **{"job": None} | changes)
    if taken:
        Ownership(place).release()
    else:
        with pytest.raises(OwnedError, match="if it was killed on another machine wait"):
            Ownership(place)


def test_silence_ends_a_claim_from_elsewhere(tmp_path: Path):
    place = LocalPlace(tmp_path)
    note(place, machine="another")
    long_ago = time.time() - LEASE - 1
    os.utime(tmp_path / NAME, (long_ago, long_ago))
    Ownership(place).release()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"token": "x"}'])
def test_a_damaged_claim_is_nobodys(text: str, place: Place):
    place.write(NAME, text.encode())
    Ownership(place).release()


def test_signs_of_life_and_their_end(place: Place, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ownership, "HEARTBEAT", 0.05)
    held = Ownership(place)
    first = owner(place)["beat"]
    time.sleep(1)
    assert owner(place)["beat"] > first
    assert held.lost is None
    place.write(NAME, json.dumps(owner(place) | {"token": "another"}).encode())
    deadline = time.monotonic() + 10
    while held.lost is None and time.monotonic() < deadline:
        place.write(NAME, json.dumps(owner(place) | {"token": "another"}).encode())
        time.sleep(0.1)
    assert held.lost is not None and "another run has taken it over" in held.lost
    held.release()
    assert owner(place)["token"] == "another"
