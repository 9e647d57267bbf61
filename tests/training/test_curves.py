"""Curves for TensorBoard: each step once after a kill, one file for each start, in S3 while it grows."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from composer.core import Timestamp
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recipe.storage.addresses import open_place
from recipe.storage.places import Place
from recipe.training import curves
from recipe.training.curves import Curves
from recipe.training.folder import RunFolder

LOGGER: Any = None  # which Curves does not ask for anything


def log(folder: RunFolder, first: int, last: int, value: float, ends: bool = True) -> Curves:
    """A start that trains batches first to last - 1, and ends or is killed."""
    state: Any = SimpleNamespace(run_name="run", timestamp=Timestamp(batch=first))
    found = Curves(folder)
    found.init(state, LOGGER)
    found.log_metrics({"early": 0.0}, step=0)  # before the clock is known
    found.fit_start(state, LOGGER)
    for batch in range(first, last):
        found.batch_start(state, LOGGER)
        found.log_metrics({"loss": value}, step=batch)
        state.timestamp = Timestamp(batch=batch + 1)
        found.log_metrics({"lr": value}, step=batch + 1)
        found.log_images(np.zeros((2, 2, 1)), "grid", True, batch + 1)  # by position, as Composer does
        found.batch_end(state, LOGGER)
        found.batch_checkpoint(state, LOGGER)
    if ends:
        found.close(state, LOGGER)
    else:
        assert found.writer is not None
        found.writer.flush()
    return found


def shown(folder: Path) -> EventAccumulator:
    """What TensorBoard shows."""
    events = EventAccumulator(str(folder / "tensorboard" / "run"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def local(folder: Path) -> RunFolder:
    return RunFolder(open_place(folder), folder)


def test_each_step_is_there_once_after_kills(tmp_path: Path):
    """Killed at 70 and gone on from checkpoint 40, killed at 60 and gone on from 50."""
    for first, last, ends in (0, 70, False), (40, 60, False), (50, 100, True):
        log(local(tmp_path), first, last, float(first), ends)
    events = shown(tmp_path)
    for tag in "loss", "lr":
        found = events.Scalars(tag)
        assert [event.step for event in found] == list(range(100))
        assert [event.value for event in found] == [0.0] * 40 + [40.0] * 10 + [50.0] * 50
    assert [event.step for event in events.Images("grid")] == list(range(100))
    assert len(list((tmp_path / "tensorboard" / "run").iterdir())) == 3


def test_a_run_that_had_no_checkpoint_begins_anew(tmp_path: Path):
    log(local(tmp_path), 0, 30, 1.0, ends=False)
    log(local(tmp_path), 0, 20, 2.0)
    assert [(event.step, event.value) for event in shown(tmp_path).Scalars("loss")] == [(n, 2.0) for n in range(20)]


class Recording(RunFolder):
    """Notes how long what it stores is."""

    def __init__(self, place: Place, local: Path):
        super().__init__(place, local)
        self.sizes: list[int] = []

    def keep_beginning(self, name: str, size: int) -> None:
        self.sizes.append(size)
        super().keep_beginning(name, size)


def test_it_arrives_in_s3_while_it_grows(bucket_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(curves, "UPLOAD_SECONDS", -1.0)
    place = open_place(bucket_folder)
    folder = Recording(place, tmp_path / "scratch")
    log(folder, 0, 90, 1.0, ends=False)
    folder.uploads.drain()
    assert folder.uploads.failure is None and len(folder.sizes) == 4  # after batches 20, 40, 60 and 80
    ((name, size),) = [(entry.name, entry.size) for entry in place.list("tensorboard/")]
    assert size == folder.sizes[-1]
    path = tmp_path / "fetched" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(place.read(name))
    assert [event.step for event in shown(tmp_path / "fetched").Scalars("loss")] == list(range(80))
    assert [path.name for path in (tmp_path / "scratch").rglob("events*")] == [Path(name).name]


def test_a_long_file_is_not_sent_for_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(curves, "UPLOAD_SECONDS", -1.0)
    monkeypatch.setattr(curves, "GROWTH", 2.0)
    folder = Recording(open_place(tmp_path), tmp_path)
    log(folder, 0, 400, 1.0)
    assert 4 <= len(folder.sizes) <= 6  # each twice as long as the one before, and the last
    assert folder.sizes == sorted(folder.sizes)
