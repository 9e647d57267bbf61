"""Where the pictures go: folders and archives, what is there already, and what is refused."""

import io
import json
import os
import shutil
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.small_snapshots import NETWORK, refused_in_process, small_network, stored
from recipe import sample
from recipe.data.facts import DataFacts
from recipe.preparation.pipeline import prepare
from recipe.sampling import archives
from recipe.sampling.distributed import Wanted
from recipe.storage.addresses import open_place
from recipe.storage.own_pictures import encoded
from recipe.weights.snapshots import SnapshotInfo, save_snapshot, snapshot_name

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
Draw = Callable[..., str]


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("one") / snapshot_name(1000, 0.05)
    info = SnapshotInfo(NETWORK, 1000, 0.05, DataFacts(class_names=NAMES))
    save_snapshot(path, stored(small_network(0), torch.float32), info)
    return path


@pytest.fixture
def draw(snapshot: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Draw:
    """Runs sample.py; returns what it said."""

    def run(out: object, *options: object, refused: bool = False) -> str:
        arguments = [snapshot, "--device", "cpu", "--steps", "1", "--out", out, *options]
        if refused:
            return refused_in_process(sample, arguments, monkeypatch, capsys)
        monkeypatch.setattr("sys.argv", ["sample.py", *map(str, arguments)])
        sample.main()
        return capsys.readouterr().out

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.png")}


def test_only_what_is_missing_is_drawn(draw: Draw, tmp_path: Path):
    draw(tmp_path / "a", "--seeds", "0-11")
    whole, before = contents(tmp_path / "a"), times(tmp_path / "a")
    for name in ("000003.png", "000010.png"):
        (tmp_path / "a" / name).unlink()
    assert "10 were there already, 2 drawn in" in draw(tmp_path / "a", "--seeds", "0-11", "--batch-size", 1)
    assert contents(tmp_path / "a") == whole
    changed = {name for name, time in times(tmp_path / "a").items() if time != before[name]}
    assert changed == {"000003.png", "000010.png"}
    assert "all of them were there already" in draw(tmp_path / "a", "--seeds", "0-11")
    draw(tmp_path / "a", "--seeds", "12-13")  # more of them
    assert len(contents(tmp_path / "a")) == 1 + 14


def test_subfolders(draw: Draw, tmp_path: Path):
    draw(tmp_path / "flat", "--seeds", "7,999-1001,123456")
    draw(tmp_path / "deep", "--seeds", "7,999-1001,123456", "--subdirs")
    names = ["000000/000007.png", "000000/000999.png", "001000/001000.png", "001000/001001.png", "123000/123456.png"]
    deep, flat = contents(tmp_path / "deep"), contents(tmp_path / "flat")
    assert sorted(deep) == [".settings.json", *names]
    assert {name.rpartition("/")[2]: data for name, data in deep.items()} == flat


def test_other_settings_are_refused(draw: Draw, tmp_path: Path):
    out = tmp_path / "a"
    draw(out, "--seeds", "0-2")
    before = contents(out)
    said = draw(out, "--seeds", "0-2", "--churn", 2, refused=True)
    assert f"{out}: holds pictures of other settings (S_churn is 0.0 there and 2.0 here)" in said
    assert "name another place, or add --overwrite" in said
    said = draw(out, "--seeds", "7", "--rho", 5, refused=True)  # also where none of these is there
    assert "rho is 7.0 there and 5.0 here" in said
    said = draw(out, "--seeds", "1-5", "--labels", "4", refused=True)
    assert "000001.png: was drawn otherwise (Label is 1 there and 4 here)" in said
    (out / ".settings.json").unlink()  # each picture says it, too
    assert "was drawn otherwise (Settings is" in draw(out, "--seeds", "0-2", "--churn", 2, refused=True)
    assert contents(out) == {name: data for name, data in before.items() if name.endswith(".png")}


def test_overwriting_other_settings(draw: Draw, tmp_path: Path):
    """An interrupted one leaves pictures of both, each of which says what it is."""
    out, other = tmp_path / "a", ("--churn", 2)
    draw(out, "--seeds", "0-2")
    first = contents(out)
    draw(out, "--seeds", "1", *other, "--overwrite")
    assert contents(out)["000000.png"] == first["000000.png"] and contents(out)["000001.png"] != first["000001.png"]
    assert "was drawn otherwise" in draw(out, "--seeds", "0-2", *other, refused=True)
    draw(out, "--seeds", "0-2", *other, "--overwrite")
    draw(tmp_path / "b", "--seeds", "0-2", *other)
    assert contents(out) == contents(tmp_path / "b")


def test_settings_of_somebody_else(draw: Draw, tmp_path: Path):
    (tmp_path / ".settings.json").write_text('{"theme": "dark"}')
    assert ".settings.json: is there, and not from this command" in draw(tmp_path, "--seeds", "0", refused=True)
    assert list(contents(tmp_path)) == [".settings.json"]


def test_a_folder_in_a_pictures_place(draw: Draw, tmp_path: Path):
    (tmp_path / "000001.png").mkdir()
    assert "000001.png: is a folder, where a picture is to go" in draw(tmp_path, "--seeds", "0-1", refused=True)
    assert contents(tmp_path) == {}


def test_what_killed_processes_left_goes(draw: Draw, tmp_path: Path):
    left = [f".tmp-{'0' * 16}-000001.png", f".tmp-{'1' * 16}-.settings.json"]
    others = [f".tmp-{'2' * 16}-holiday.png", ".tmp-000001.png", f".tmp-{'3' * 16}-000002.png"]
    for name in left + others:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1, 1))
    future = 2**32  # being written by somebody
    os.utime(tmp_path / others[-1], (future, future))
    draw(tmp_path, "--seeds", "0-1")
    assert sorted(contents(tmp_path)) == sorted([*others, ".settings.json", "000000.png", "000001.png"])


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


@pytest.fixture
def tree(draw: Draw, tmp_path: Path) -> dict[str, bytes]:
    draw(tmp_path / "tree", "--seeds", "3-12", "--labels", "two,5-7")
    found = contents(tmp_path / "tree")
    del found[".settings.json"]
    return found


LABELS = [[2, 5, 6, 7][seed % 4] for seed in range(3, 13)]


def test_zip(draw: Draw, tree: dict[str, bytes], tmp_path: Path):
    """In the official layout, which prepare.py reads as it reads the official tool's."""
    draw(tmp_path / "a.zip", "--seeds", "3-12", "--labels", "two,5-7")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.testzip() is None
        names = [f"00000/img{index:08d}.png" for index in range(10)]
        assert archive.namelist() == [*names, "dataset.json"]
        assert [archive.read(name) for name in names] == list(dict(sorted(tree.items())).values())
        assert json.loads(archive.read("dataset.json")) == {
            "labels": [list(x) for x in zip(names, LABELS, strict=True)]
        }
    facts = prepare(str(tmp_path / "a.zip"), tmp_path / "shards", resolution=8)
    assert facts.num_images == 10 and facts.label_dim == 8
    assert not (tmp_path / "a.zip.parts").exists()


def test_tar(draw: Draw, tree: dict[str, bytes], tmp_path: Path):
    draw(tmp_path / "a.tar", "--seeds", "3-12", "--labels", "two,5-7")
    with tarfile.open(tmp_path / "a.tar") as archive:
        found = {member.name: archive.extractfile(member) for member in archive}
        read = {name: file.read() for name, file in found.items() if file is not None}
    assert {name: data for name, data in read.items() if name.endswith(".png")} == tree
    assert [int(read[f"{seed:06d}.cls"]) for seed in range(3, 13)] == LABELS
    assert list(read)[:2] == ["000003.png", "000003.cls"]
    facts = prepare(str(tmp_path / "a.tar"), tmp_path / "shards", resolution=8)
    assert facts.num_images == 10 and facts.label_dim == 8


def test_npz(draw: Draw, tree: dict[str, bytes], tmp_path: Path):
    draw(tmp_path / "a.npz", "--seeds", "3-12", "--labels", "two,5-7")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert sorted(arrays) == ["arr_0", "arr_1"]
        images, labels = arrays["arr_0"], arrays["arr_1"]
    assert images.dtype == np.uint8 and images.shape == (10, 8, 8, 3)
    assert labels.dtype == np.int64 and labels.tolist() == LABELS
    for image, data in zip(images, dict(sorted(tree.items())).values(), strict=True):
        assert np.array_equal(image, np.repeat(pixels(data)[:, :, None], 3, axis=2))


@pytest.mark.parametrize("suffix", archives.KINDS)
def test_an_archive_that_is_there(suffix: str, draw: Draw, tmp_path: Path):
    """Is known by its settings, seeds and labels; nobody else's file is replaced."""
    out = tmp_path / f"a{suffix}"
    draw(out, "--seeds", "0-3")
    first, written = out.read_bytes(), out.stat().st_mtime_ns
    assert "all of them were there already" in draw(out, "--seeds", "0-3")
    assert out.stat().st_mtime_ns == written
    assert "holds other pictures (S_churn is 0.0 there and 3.0 here)" in draw(
        out, "--churn", 3, "--seeds", "0-3", refused=True
    )
    assert "images is 4 there and 5 here" in draw(out, "--seeds", "0-4", refused=True)
    assert "seeds and labels is" in draw(out, "--seeds", "1-4", refused=True)
    assert [path.name for path in tmp_path.iterdir()] == [out.name] and out.read_bytes() == first
    draw(out, "--seeds", "0-3", "--churn", 3, "--overwrite")
    draw(tmp_path / f"b{suffix}", "--seeds", "0-3", "--churn", 3)
    assert out.read_bytes() == (tmp_path / f"b{suffix}").read_bytes() != first
    out.write_bytes(b"my own")
    assert f"a{suffix}: is there, and not from this command" in draw(out, "--seeds", "0-3", refused=True)
    assert out.read_bytes() == b"my own"


def test_without_labels(draw: Draw, tmp_path: Path):
    for suffix in archives.KINDS:
        draw(tmp_path / f"a{suffix}", "--seeds", "0-1", "--labels", "none")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert json.loads(archive.read("dataset.json")) == {"labels": None}
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert archive.getnames() == ["000000.png", "000001.png"]
    with np.load(tmp_path / "a.npz") as arrays:
        assert list(arrays) == ["arr_0"]


def test_an_archive_goes_on_from_its_parts(draw: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also after an end between its rename and the removal of the parts; a grid is made of it when it is whole, too."""
    draw(tmp_path / "a.zip", "--seeds", "0-9", "--grid", tmp_path / "a.png")
    monkeypatch.setattr("recipe.sampling.archives._in_order", stop)
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path / "b.zip", "--seeds", "0-9")
    assert not (tmp_path / "b.zip").exists() and len(contents(tmp_path / "b.zip.parts")) == 11
    monkeypatch.undo()
    monkeypatch.setattr("recipe.sampling.outputs.PictureFolder.clear", stop)
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path / "b.zip", "--seeds", "0-9")
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "b.zip.parts" / "000000")
    said = draw(tmp_path / "b.zip", "--seeds", "0-9", "--grid", tmp_path / "b.png")
    assert "all of them were there already" in said and f"{tmp_path / 'b.png'}: the first 10 of them" in said
    assert (tmp_path / "b.zip").read_bytes() == (tmp_path / "a.zip").read_bytes()
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()
    assert not (tmp_path / "b.zip.parts").exists()


def stop(*arguments: object) -> None:
    raise KeyboardInterrupt


def test_a_large_npz_is_written_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The picture at hand, and the few that are read ahead, are all that is in memory."""
    png = encoded(Image.new("L", (128, 128)), ".png")
    tracemalloc.start()
    wanted = [Wanted(seed, seed % 10) for seed in range(1000)]  # 49 MB of pixels
    archive = archives.Archive(str(tmp_path / "a.npz"), wanted, {})
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    archive.assemble(lambda each: png)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert (tmp_path / "a.npz").stat().st_size > 49_000_000 and peak < 5_000_000


def test_grids_are_of_the_first(draw: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("recipe.sampling.job.GRID_MOST", 3)
    said = draw(tmp_path / "a", "--seeds", "4-8", "--grid", tmp_path / "g.png", "--columns", 2)
    assert "the first 3 of them, 2 to a row" in said
    sheet = pixels((tmp_path / "g.png").read_bytes())
    assert sheet.shape == (16, 16) and not sheet[8:, 8:].any()
    for index, (top, left) in enumerate([(0, 0), (0, 8), (8, 0)]):
        one = pixels((tmp_path / "a" / f"{4 + index:06d}.png").read_bytes())
        assert np.array_equal(sheet[top : top + 8, left : left + 8], one) and one.std() > 1


def test_s3(draw: Draw, bucket_folder: str, tmp_path: Path):
    """The same bytes as on this machine, resumed too."""
    place = open_place(bucket_folder)
    grid = ("--grid", f"{bucket_folder}/grid.png")
    draw(tmp_path / "a", "--seeds", "0-9", "--grid", tmp_path / "grid.png")
    draw(f"{bucket_folder}/a", "--seeds", "0-9", *grid)
    assert {name: place.read(f"a/{name}") for name in contents(tmp_path / "a")} == contents(tmp_path / "a")
    assert place.read("grid.png") == (tmp_path / "grid.png").read_bytes()
    place.delete(["a/000004.png"])
    assert "9 were there already, 1 drawn" in draw(f"{bucket_folder}/a", "--seeds", "0-9", *grid)
    assert place.read("a/000004.png") == (tmp_path / "a" / "000004.png").read_bytes()
    assert "other settings (rho is" in draw(f"{bucket_folder}/a", "--rho", 3, "--seeds", "0-9", refused=True)
    for suffix in archives.KINDS:
        draw(tmp_path / f"a{suffix}", "--seeds", "0-9")
        draw(f"{bucket_folder}/a{suffix}", "--seeds", "0-9")
        assert place.read(f"a{suffix}") == (tmp_path / f"a{suffix}").read_bytes()
        assert "all of them were there already" in draw(f"{bucket_folder}/a{suffix}", "--seeds", "0-9")
        assert "images is 10 there" in draw(f"{bucket_folder}/a{suffix}", "--seeds", "0-8", refused=True)
    assert not [entry.name for entry in place.list() if ".parts" in entry.name]
    place.write("mine.png", b"mine")
    said = draw(f"{bucket_folder}/a", "--seeds", "0-9", "--grid", f"{bucket_folder}/mine.png", refused=True)
    assert "mine.png: is there, and not from this command" in said
