"""Which files of a run somebody is given."""

from pathlib import Path

import pytest

from recipe.storage.local import LocalPlace
from recipe.weights.run_contents import FetchError, choose
from recipe.weights.snapshots import snapshot_name

FILES = [
    "config.yaml",
    *(f"snapshots/{snapshot_name(nimg, length)}" for nimg in (1000, 2000) for length in (0.05, 0.1)),
    f"posthoc/{snapshot_name(2000, 0.13, 'posthoc')}",
    "samples/00000001000-raw.png",
    "tensorboard/events",
]
PRIVATE = ["owner.json", "progress.txt"]


@pytest.fixture
def run(tmp_path: Path) -> LocalPlace:
    place = LocalPlace(tmp_path)
    for name in (*FILES, *PRIVATE):
        place.write(name, b"x")
    return place


def chosen(run: LocalPlace, what: str, sigma_rels: list[float] | None = None, nimg: str = "all") -> set[str]:
    return {entry.name for entry in choose(run, run.list(), what, sigma_rels, nimg)}


def test_everything_but_what_only_a_living_run_needs(run: LocalPlace):
    """Its claim on the folder, in a copy, would say that another run owns the copy."""
    assert chosen(run, "everything") == set(FILES)


def test_kinds(run: LocalPlace):
    assert chosen(run, "snapshots") == set(FILES[1:5])
    assert chosen(run, "posthoc") == {FILES[5]}
    assert chosen(run, "config") == {"config.yaml"}


def test_times_and_lengths(run: LocalPlace):
    assert chosen(run, "snapshots", nimg="latest") == set(FILES[3:5])
    assert chosen(run, "snapshots", nimg="1k") == set(FILES[1:3])
    assert chosen(run, "snapshots", [0.1]) == {FILES[2], FILES[4]}
    assert chosen(run, "snapshots", [0.05], "latest") == {FILES[3]}
    assert chosen(run, "everything", [0.13]) == {FILES[5]}
    for arguments in (([0.2], "all"), (None, "3000")):
        with pytest.raises(FetchError, match="holds no such snapshots"):
            chosen(run, "snapshots", *arguments)
    with pytest.raises(FetchError, match="holds no whole checkpoint"):
        chosen(run, "checkpoint")
