"""What stays on a run's machine once it is stored elsewhere, and that a local run loses nothing."""

import tempfile
from pathlib import Path
from typing import Any

import pytest

from recipe.storage.local import LocalPlace
from recipe.training.folder import MARK, RunFolder, ScratchError, _own_scratch, check_scratch


class Elsewhere(LocalPlace):
    """A folder that counts as object storage."""

    @property
    def is_local(self) -> bool:
        return False


def folder(tmp_path: Path, kind: Any) -> RunFolder:
    stored = tmp_path / "stored"
    return RunFolder(kind(stored), tmp_path / "scratch" if kind is Elsewhere else stored)


def write(run: RunFolder, *names: str) -> None:
    for name in names:
        (run.local / name).parent.mkdir(parents=True, exist_ok=True)
        (run.local / name).write_text(name)


FILES = ("snapshots/a.safetensors", "checkpoints/ba8-rank0.pt", "tensorboard/events")


@pytest.mark.parametrize("later", [False, True])
def test_what_is_stored_whole_is_deleted_here(later: bool, tmp_path: Path):
    run = folder(tmp_path, Elsewhere)
    write(run, *FILES)
    for name in FILES:
        (run.keep if later else run.store)(name)
    run.uploads.drain()
    assert run.uploads.failure is None
    assert [(tmp_path / "stored" / name).read_text() for name in FILES] == list(FILES)
    assert [name for name in FILES if (run.local / name).exists()] == []


def test_a_file_that_grows_stays(tmp_path: Path):
    run = folder(tmp_path, Elsewhere)
    write(run, FILES[2])
    run.keep_beginning(FILES[2], size=5)
    run.uploads.drain()
    assert (tmp_path / "stored" / FILES[2]).read_text() == FILES[2][:5]
    assert [path.read_text() for path in (run.local / FILES[2]).parent.iterdir()] == [FILES[2]]


def test_what_cannot_be_stored_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = folder(tmp_path, Elsewhere)
    write(run, *FILES)

    def fail(name: str, path: Path) -> None:
        raise OSError("no network")

    monkeypatch.setattr(run.place, "upload", fail)
    run.keep(FILES[0])
    run.uploads.drain()
    assert "no network" in str(run.uploads.failure)
    assert (run.local / FILES[0]).exists()


def test_forgetting_and_emptying(tmp_path: Path):
    run = folder(tmp_path, Elsewhere)
    run.empty_scratch()
    write(run, *FILES, "checkpoints/ep0-ba8/.metadata")
    run.forget("checkpoints/ep0-ba8")
    run.forget(FILES[1])
    run.forget("snapshots/missing")
    assert {path.name for path in run.local.rglob("*") if path.is_file()} == {"a.safetensors", "events", MARK}
    run.empty_scratch()
    assert [path.name for path in run.local.iterdir()] == [MARK]
    assert run.local.stat().st_mode & 0o777 == 0o700


def test_nothing_of_a_local_run_is_deleted(tmp_path: Path):
    run = folder(tmp_path, LocalPlace)
    write(run, *FILES)
    for name in FILES:
        run.keep(name)
        run.store(name)
        run.forget(name)
    run.empty_scratch()
    run.uploads.drain()
    assert all((tmp_path / "stored" / name).read_text() == name for name in FILES)


def test_scratch_that_is_not_the_runs_is_never_emptied(tmp_path: Path):
    run = folder(tmp_path, Elsewhere)
    write(run, "notes/thesis.txt")
    with pytest.raises(ScratchError, match="holds files that no run put there, such as notes"):
        run.empty_scratch()
    assert (run.local / "notes/thesis.txt").read_text() == "notes/thesis.txt"


def test_scratch_of_another_run_of_that_name_is_never_emptied(tmp_path: Path):
    run = folder(tmp_path, Elsewhere)
    run.empty_scratch()
    write(run, *FILES)
    other = RunFolder(Elsewhere(tmp_path / "elsewhere"), run.local)
    with pytest.raises(ScratchError, match=r"holds the files of the run in .*stored"):
        other.empty_scratch()
    assert (run.local / FILES[0]).exists()


def test_the_folder_that_a_run_makes_is_known_without_a_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By its name, in which the run's address is; not if it is a link, nor if it is another run's."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = _own_scratch("s3://bucket/run", "run")
    (own / "snapshots").mkdir(parents=True)
    check_scratch(own, "s3://bucket/run")
    with pytest.raises(ScratchError, match="no run put there, such as snapshots"):
        check_scratch(own, "s3://bucket/other")
    own.rename(tmp_path / "photos")
    own.symlink_to(tmp_path / "photos")
    with pytest.raises(ScratchError, match="no run put there, such as snapshots"):
        check_scratch(own, "s3://bucket/run")


def test_a_link_in_scratch_is_removed_and_not_what_it_names(tmp_path: Path):
    run = folder(tmp_path, Elsewhere)
    run.empty_scratch()
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_text("a")
    (run.local / "photos").symlink_to(photos)
    run.empty_scratch()
    assert (photos / "a.jpg").exists() and not (run.local / "photos").is_symlink()


def test_scratch_that_is_a_link_to_a_users_folder_is_refused(tmp_path: Path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_text("a")
    (tmp_path / "scratch").symlink_to(photos)
    with pytest.raises(ScratchError, match=r"a\.jpg"):
        check_scratch(tmp_path / "scratch", "s3://bucket/run")
