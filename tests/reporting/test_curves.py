"""Curves from event files: starts joined, steps that were trained again shown once, long ones thinned, damage borne."""

import math
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from recipe.reporting import curves as module
from recipe.reporting.curves import Curve, read_curves
from recipe.storage.addresses import open_place
from recipe.storage.local import LocalPlace


def start(folder: Path, first: int, last: int, offset: float, suffix: str) -> Path:
    """What one start logs: steps from `first` to before `last`."""
    target = folder / "tensorboard" / "run"
    before = set(target.glob("*")) if target.exists() else set()
    writer = SummaryWriter(target, purge_step=first, filename_suffix=suffix)
    for step in range(first, last):
        writer.add_scalar("loss/train/total", step + offset, step)
    writer.add_text("note", "no number", first)
    writer.close()
    time.sleep(0.01)  # starts are told apart by their time
    (path,) = set(target.glob("*")) - before
    return path


def test_starts_are_joined(tmp_path: Path):
    """A run that was killed twice: each time it goes on from a checkpoint before its last logged step."""
    start(tmp_path, 0, 50, 0.0, ".a")
    start(tmp_path, 30, 45, 0.25, ".c")  # names are not in the order of the starts
    start(tmp_path, 40, 60, 0.5, ".b")
    curves, remarks = read_curves(LocalPlace(tmp_path))
    assert set(curves) == {"loss/train/total"}
    assert curves["loss/train/total"].steps == list(range(60))
    expected = [step + (0 if step < 30 else 0.25 if step < 40 else 0.5) for step in range(60)]
    assert curves["loss/train/total"].means == expected
    assert any("3 starts" in remark for remark in remarks)


def test_a_file_that_is_cut_short_gives_what_is_whole(tmp_path: Path):
    path = start(tmp_path, 0, 50, 0.0, "")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    curves, _ = read_curves(LocalPlace(tmp_path))
    steps = curves["loss/train/total"].steps
    assert 10 < len(steps) < 50 and steps == list(range(len(steps)))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"\x80\x04cposix\nsystem\n",
        lambda data: data[:40] + b"\xff" * 8 + data[48:],
        lambda data: struct.pack("<Q", 2**62) + data[8:],
        lambda data: bytes(len(data)),
    ],
)
def test_damage_ends_a_file_and_not_the_page(damage, tmp_path: Path):
    path = start(tmp_path, 0, 5, 0.0, ".a")
    path.write_bytes(damage(path.read_bytes()))
    start(tmp_path, 5, 9, 0.0, ".b")
    curves, _ = read_curves(LocalPlace(tmp_path))
    assert curves["loss/train/total"].steps[-4:] == [5, 6, 7, 8]


def test_long_curves_are_means(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MOST_POINTS", 10)
    curve = Curve()
    for step in range(100):
        curve.add(step, float(step))
        assert len(curve.steps) <= 10
    assert curve.stride == 16 and curve.steps == list(range(0, 100, 16))
    assert curve.means[:6] == [16 * index + 7.5 for index in range(6)] and curve.means[6] == 97.5


def test_values_that_are_not_finite_do_not_spoil_their_neighbours(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MOST_POINTS", 2)
    curve = Curve()
    for step, value in enumerate([1.0, math.nan, math.inf, 3.0, math.nan]):
        curve.add(step, value)
    assert curve.means[0] == 2.0 and math.isnan(curve.means[1])


def peak(folder: Path) -> int:
    """Bytes of Python's objects while the curves of a run are read."""
    tracemalloc.start()
    try:
        read_curves(LocalPlace(folder))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_is_bounded_by_curves_and_not_by_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A list of all steps would be 300 kB more. (The library reads files in blocks of 16 MB.)"""
    monkeypatch.setattr(module, "MOST_POINTS", 20)
    for name, count in (("few", 200), ("many", 3000)):
        start(tmp_path / name, 0, count, 0.0, "")
    peak(tmp_path / "few")  # what is imported and cached
    file_growth = 150_000
    assert peak(tmp_path / "many") - peak(tmp_path / "few") < file_growth + 60_000
    curves, remarks = read_curves(LocalPlace(tmp_path / "many"))
    assert len(curves["loss/train/total"].steps) <= 20
    assert any("thinned" in remark for remark in remarks)


def test_from_s3(bucket_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In pieces; nothing is left on this machine."""
    monkeypatch.setattr(module, "PIECE", 1000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    path = start(tmp_path / "run", 0, 50, 0.0, "")
    place = open_place(bucket_folder)
    place.upload(f"tensorboard/run/{path.name}", path)
    here, _ = read_curves(LocalPlace(tmp_path / "run"))
    there, _ = read_curves(place)
    assert there == here and list((tmp_path / "tmp").iterdir()) == []


def test_a_run_without_curves(tmp_path: Path):
    assert read_curves(LocalPlace(tmp_path)) == ({}, [])
