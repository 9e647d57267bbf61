"""Which checkpoints count as whole, whatever a kill left, and which may go."""

import os
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from recipe.storage.addresses import open_place
from recipe.storage.local import LocalPlace
from recipe.storage.places import Place
from recipe.weights.checkpoints import clean_up, list_checkpoints, newest_whole, remove, retain
from recipe.weights.pickles import UntrustedPickle

STATE = {"state": {"model": {"net.weight": torch.arange(100.0)}, "timestamp": {"batch": 3}}}


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "local":
        return LocalPlace(tmp_path / "checkpoints")
    return open_place(request.getfixturevalue("bucket_folder"))


def sharded(place: Place, batch: int, folder: Path) -> str:
    """Store a genuine sharded checkpoint; returns its name."""
    name = f"ep0-ba{batch}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is one process
        save(STATE, storage_writer=FileSystemWriter(folder / name), no_dist=True)
    for path in (folder / name).iterdir():
        place.upload(f"{name}/{path.name}", path)
    return name


def single(place: Place, batch: int, folder: Path) -> str:
    name = f"ba{batch}-rank0.pt"
    torch.save(STATE, folder / name)
    place.upload(name, folder / name)
    return name


def names(place: Place) -> list[str]:
    return [checkpoint.name for checkpoint in list_checkpoints(place)]


def test_both_kinds_are_listed_by_batch(place: Place, tmp_path: Path):
    for batch, make in ((8, sharded), (16, single), (100, sharded)):
        make(place, batch, tmp_path)
    place.write("notes.txt", b"")
    place.write("ba8-rank1.pt", b"")
    assert names(place) == ["ep0-ba8", "ba16-rank0.pt", "ep0-ba100"]
    newest = newest_whole(place)
    assert newest is not None and newest.batch == 100 and newest.sharded
    assert newest.size == sum(entry.size for entry in place.list("ep0-ba100/"))


@pytest.mark.parametrize("harm", ["part missing", "part cut short", "metadata missing"])
def test_torn_ones_are_passed_over_and_cleaned_up(harm: str, place: Place, tmp_path: Path):
    sharded(place, 8, tmp_path)
    torn = sharded(place, 16, tmp_path)
    if harm == "part cut short":
        data = place.read(f"{torn}/__0_0.distcp")
        place.write(f"{torn}/__0_0.distcp", data[:-1])
    else:
        place.delete([f"{torn}/{'.metadata' if harm == 'metadata missing' else '__0_0.distcp'}"])
    newest = newest_whole(place)
    assert newest is not None and newest.batch == 8
    assert clean_up(place) == newest
    assert names(place) == ["ep0-ba8"]


def test_a_torn_local_file(tmp_path: Path):
    place = LocalPlace(tmp_path / "checkpoints")
    single(place, 8, tmp_path)
    torn = tmp_path / "checkpoints" / single(place, 16, tmp_path)
    os.truncate(torn, torn.stat().st_size // 2)
    newest = clean_up(place)
    assert newest is not None and newest.name == "ba8-rank0.pt"
    assert not torn.exists()


def test_nothing_there(place: Place):
    assert newest_whole(place) is None
    assert clean_up(place) is None
    assert retain(place, 2) is None


@pytest.mark.parametrize(("keep", "left"), [(-1, [8, 16, 24, 32]), (1, [24, 32]), (2, [16, 24, 32])])
def test_retention_counts_whole_ones(keep: int, left: list[int], place: Place, tmp_path: Path):
    """The newest is still being uploaded: it neither counts nor goes."""
    for batch in (8, 16, 24, 32):
        sharded(place, batch, tmp_path)
    place.delete(["ep0-ba32/__0_0.distcp"])
    newest = retain(place, keep)
    assert newest is not None and newest.batch == 24
    assert [checkpoint.batch for checkpoint in list_checkpoints(place)] == left


def test_what_makes_it_whole_goes_first(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sharded(place, 8, tmp_path)
    deleted: list[list[str]] = []
    monkeypatch.setattr(place, "delete", lambda names: deleted.append(list(names)))
    remove(place, list_checkpoints(place)[0])
    assert deleted == [["ep0-ba8/.metadata"], ["ep0-ba8/__0_0.distcp"]]


def test_foreign_code_is_refused_not_passed_over(place: Place):
    place.write("ep0-ba8/.metadata", pickle.dumps(os.system))
    with pytest.raises(UntrustedPickle, match="system"):
        newest_whole(place)


def test_what_else_lies_in_a_sharded_checkpoint_stays(tmp_path: Path):
    place = open_place(tmp_path)
    for name in ("__0_0.distcp", "notes.txt", "old/__0_0.distcp"):
        place.write(f"ep0-ba8/{name}", b"x")
    assert clean_up(place) is None
    assert [entry.name for entry in place.list()] == ["ep0-ba8/notes.txt", "ep0-ba8/old/__0_0.distcp"]
    assert list_checkpoints(place) == []
