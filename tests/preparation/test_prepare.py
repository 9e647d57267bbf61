"""Preparation as a whole: the same bytes whatever happens, complete or absent, and what bad input is answered with."""

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import recipe.prepare
from helpers.commands import assert_refused
from helpers.forks import run_forked, train
from helpers.object_store import ObjectStore
from helpers.picture_sets import contents, messy_folder, noise, official_zip, png, smooth, stored, write_folder
from recipe.data.index import Source, check_shards, number_of_samples, open_source
from recipe.data.labels import read_labels
from recipe.preparation.inspection import inspect
from recipe.preparation.options import Settings
from recipe.preparation.pipeline import prepare
from recipe.preparation.sources.digits import embedded_digits
from recipe.preparation.sources.folder import FolderSource
from recipe.preparation.sources.items import PreparationError
from recipe.preparation.sums import PixelSums
from recipe.storage.addresses import open_place
from recipe.storage.places import Place, StorageError

MANY = 300


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MANY pictures of mixed sizes in three classes."""
    folder = tmp_path_factory.mktemp("photos") / "photos"
    files = {
        f"class {index % 3}/{index:03d}.png": png(smooth(40 + index % 7, 44 + index % 5, index))
        for index in range(MANY)
    }
    return write_folder(folder, files)


OPTIONS: dict[str, Any] = {"resolution": 16, "crop": "center-crop-dhariwal", "shard_size": "40kb"}
"""About ten shards of `photos`."""


@pytest.fixture(scope="session")
def undisturbed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "shards"
    prepare(str(photos), out, workers=1, **OPTIONS)
    return out


def test_digits_are_real_padded_or_reduced():
    large, labels = embedded_digits(32)
    assert large.shape == (5000, 1, 32, 32)
    assert large.dtype == np.uint8
    assert np.bincount(labels).tolist() == [500] * 10
    assert not large[:, :, :2].any()  # padding
    assert large.max() == 255
    small, _ = embedded_digits(16)
    box = large.reshape(5000, 1, 16, 2, 16, 2).mean(axis=(3, 5))
    assert np.abs(small - box).max() <= 1  # Pillow rounds after each of its two passes


def test_digits_as_shards(digits: Path):
    images, labels = embedded_digits(8)
    found = stored(digits, 8, 1, 10)
    assert np.array_equal(found[0], images)
    assert found[1] == labels.tolist()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # streaming leaves files open
@pytest.mark.parametrize("encoding", ["png", "webp", "raw"])
@pytest.mark.parametrize("compression", [None, "zstd:7"])
def test_noise_survives_every_encoding(tmp_path: Path, encoding: str, compression: str | None):
    for index in range(20):
        write_folder(tmp_path / "data", {f"{index % 4}/{index:02d}.png": png(noise(8, 8, index))})
    prepare(
        str(tmp_path / "data"),
        tmp_path / "out",
        encoding=encoding,
        compression=compression,
        shard_size="4kb",
        hashes=("sha1", "xxh64"),
    )
    order = sorted(range(20), key=lambda index: (index % 4, index))
    images, labels = stored(tmp_path / "out", 8, 3, 4)
    assert np.array_equal(images, np.stack([noise(8, 8, index).transpose(2, 0, 1) for index in order]))
    assert labels == [index % 4 for index in order]
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert len(index["shards"]) == 7
    for shard in index["shards"]:
        assert set(shard["raw_data"]["hashes"]) == {"sha1", "xxh64"}
        assert shard["raw_data"]["bytes"] <= 4096
        assert shard["compression"] == compression


@pytest.mark.parametrize("workers", [2, 3])
def test_bytes_do_not_depend_on_the_number_of_workers(photos: Path, undisturbed: Path, tmp_path: Path, workers: int):
    prepare(str(photos), tmp_path / "out", workers=workers, **OPTIONS)
    assert contents(tmp_path / "out") == contents(undisturbed)
    assert len(contents(undisturbed)) > 8
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_statistics_are_those_of_all_pixels(undisturbed: Path):
    facts = json.loads((undisturbed / "stats.json").read_text())
    images, labels = stored(undisturbed, 16, 3, 3)
    values = images / 127.5 - 1
    assert facts["mean"] == pytest.approx(values.mean(axis=(0, 2, 3)), abs=1e-12)
    assert facts["std"] == pytest.approx(values.std(axis=(0, 2, 3)), abs=1e-12)
    assert facts["sigma_data"] == pytest.approx(values.std(), abs=1e-12)
    assert (facts["num_images"], facts["img_resolution"], facts["img_channels"], facts["label_dim"]) == (MANY, 16, 3, 3)
    assert facts["images_per_class"] == {str(label): labels.count(label) for label in range(3)}
    assert facts["class_names"] == ["class 0", "class 1", "class 2"]
    assert (facts["kind"], facts["source"], facts["encoding"]) == ("pixels", "photos", "png")
    assert facts["settings"]["crop"] == "center-crop-dhariwal"


def test_sums_merge_exactly():
    images = np.random.default_rng(0).integers(0, 256, (50, 3, 4, 4), dtype=np.uint8)
    whole, merged = PixelSums(3), PixelSums(3)
    whole.add(images)
    for part in (images[:1], images[1:30], images[30:]):
        sums = PixelSums(3)
        sums.add(part)
        merged.merge(json.loads(json.dumps(sums.note())))
    assert merged.note() == whole.note()


def test_channels_follow_the_pictures_unless_given(tmp_path: Path):
    grey = write_folder(tmp_path / "grey", {f"{i}.png": png(noise(8, 8, i, channels=1)) for i in range(3)})
    assert prepare(str(grey), tmp_path / "a").img_channels == 1
    assert prepare(str(grey), tmp_path / "b", channels=3).img_channels == 3
    write_folder(grey, {"3.png": png(noise(8, 8, 3))})
    assert prepare(str(grey), tmp_path / "c").img_channels == 3
    assert prepare(str(grey), tmp_path / "d", channels=1).img_channels == 1


def test_a_colour_picture_that_the_first_look_missed_is_not_made_grey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("recipe.preparation.first_look.LOOKS", 2)
    files = {f"{i}.png": png(noise(8, 8, i, channels=1)) for i in range(4)} | {"1.png": png(noise(8, 8, 1))}
    with pytest.raises(PreparationError, match=r"1\.png: is in colour, but the first pictures are grey"):
        prepare(str(write_folder(tmp_path / "data", files)), tmp_path / "out", workers=1)


def test_the_official_zip_gives_the_same_shards_as_its_folder(tmp_path: Path):
    import zipfile

    path = official_zip(tmp_path / "official.zip")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "folder")
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        expected = np.stack([np.array(Image.open(archive.open(name))).transpose(2, 0, 1) for name in names])
    for source in (path, tmp_path / "folder"):
        out = tmp_path / f"out {source.name}"
        prepare(str(source), out)
        images, labels = stored(out, 16, 3, 5)
        assert np.array_equal(images, expected)
        assert labels == [(7 * index) % 5 for index in range(12)]


def test_what_is_taken_for_classes_is_always_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    names = [f"{number}/{number}.png" for number in range(12)]
    folder = write_folder(tmp_path / "data", dict.fromkeys(names, png(noise(8, 8, 0))))
    for _ in range(2):  # made, and there already
        facts = prepare(str(folder), tmp_path / "out", workers=1)
        assert 'labels: 12 classes, 0 "0" to 11 "11" (then 1 "1", 2 "2", 3 "3", ...)\n' in capsys.readouterr().out
        assert facts.class_names == [str(number) for number in range(12)]


def test_preparing_again_keeps_finished_work_and_refuses_other_work(undisturbed: Path, photos: Path, tmp_path: Path):
    out = shutil.copytree(undisturbed, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    line = [str(photos), "--out", str(out), "--crop", "center-crop-dhariwal", "--shard-size", "40kb", "--resolution"]
    said = recipe.prepare.run(recipe.prepare.arguments_parser().parse_args([*line, "16"]))
    assert said.startswith(f"{out} already holds {MANY} images of 3x16x16 in 3 classes")
    with pytest.raises(PreparationError, match=f"--out {out}: holds other data.* delete it, or give --overwrite"):
        recipe.prepare.run(recipe.prepare.arguments_parser().parse_args([*line, "8"]))
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    prepare(str(photos), out, overwrite=True, resolution=8)
    assert number_of_samples(check_shards(str(out))) == MANY
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_other_files_are_never_overwritten(photos: Path, tmp_path: Path):
    out = write_folder(tmp_path / "home", {"thesis.txt": b"years of work", "index.json": b"{}"})
    for overwrite in (False, True):
        with pytest.raises(PreparationError, match=r"holds other files, such as thesis\.txt, which"):
            prepare(str(photos), out, overwrite=overwrite, **OPTIONS)
    assert contents(out) == {"thesis.txt": b"years of work", "index.json": b"{}"}
    (tmp_path / "file").write_text("x")
    with pytest.raises(PreparationError, match="is a file; name a folder"):
        prepare(str(photos), tmp_path / "file", overwrite=True, **OPTIONS)


def test_an_interrupted_preparation_leaves_nothing_that_looks_complete(
    photos: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    done = 0

    def write_some(*arguments):
        nonlocal done
        done += 1
        if done > 3:
            raise KeyboardInterrupt
        return write_chunk(*arguments)

    from recipe.preparation.workers import write_chunk

    with monkeypatch.context() as patch:
        patch.setattr("recipe.preparation.workers.write_chunk", write_some)
        with pytest.raises(KeyboardInterrupt):
            prepare(str(photos), out, workers=1, **OPTIONS)
    assert not out.exists()
    (partial,) = tmp_path.iterdir()
    finished = {path.name: path.stat().st_mtime_ns for path in partial.glob("shard.*")}
    assert len(finished) == 3
    prepare(str(photos), out, workers=1, **OPTIONS)
    assert contents(out) == contents(undisturbed)
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished, "written twice"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_work_of_other_settings_or_with_a_lost_shard_is_done_again(photos: Path, undisturbed: Path, tmp_path: Path):
    out, partial = tmp_path / "out", tmp_path / ".out.partial"
    prepare(str(photos), partial, **{**OPTIONS, "resolution": 8})
    index = json.loads((partial / "index.json").read_text())
    for number, shard in enumerate(index["shards"]):
        note = {"key": "of other settings", "samples": shard["samples"], "shards": [shard], "skipped": []}
        write_folder(partial, {f"unfinished/{number:05d}.json": json.dumps(note).encode()})
    (partial / "index.json").unlink()
    write_folder(partial, {"unfinished/00099.json": b"{", "shard.00099.mds": b"left over"})
    prepare(str(photos), out, **OPTIONS)
    assert contents(out) == contents(undisturbed)


def started(*arguments: Any, **options: Any) -> BaseProcess:
    """A preparation in a process of its own, which is forked because importing takes seconds."""

    def work() -> None:
        os.setpgrp()
        prepare(*arguments, **options)

    process = multiprocessing.get_context("fork").Process(target=work)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads
        process.start()
    return process


def kill_at_random(
    rng: random.Random, times: int, longest: float, start_over: Callable[[], object], *arguments: Any, **options: Any
) -> None:
    """Start and kill a preparation, `times` times before it is over; every other time only its parent process.

    Args:
        longest: seconds after which it is killed at the latest.
        start_over: deletes what it made, for when it was over before.
    """
    landed = 0
    while landed < times:
        process = started(*arguments, **options)
        process.join(rng.uniform(0.0, longest))
        if process.exitcode is None and process.pid is not None:
            if landed % 2 and os.getpgid(process.pid) == process.pid:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        if process.exitcode == 0:
            start_over()
        else:
            landed += 1


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=[pytest.mark.slow, pytest.mark.soak])])
def test_kill_9_at_random_moments_changes_no_byte(kills: int, photos: Path, undisturbed: Path, tmp_path: Path):
    begin = time.monotonic()
    prepare(str(photos), tmp_path / "timed", workers=2, **OPTIONS)
    longest = (time.monotonic() - begin) / 4
    out = tmp_path / "out"
    kill_at_random(random.Random(0), kills, longest, lambda: shutil.rmtree(out), str(photos), out, workers=2, **OPTIONS)
    prepare(str(photos), out, workers=2, **OPTIONS)
    assert contents(out) == contents(undisturbed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "timed"]


def test_two_preparations_of_one_place_do_not_mix(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("recipe.preparation.outputs.LOCK_SECONDS", 0.2)
    from recipe.preparation.outputs import open_output

    first = open_output(str(tmp_path / "out"))
    first.begin()
    try:
        with pytest.raises(PreparationError, match=r"another prepare\.py is writing there"):
            prepare(str(photos), tmp_path / "out", **OPTIONS)
    finally:
        first.end()


def test_a_worker_that_dies_is_told(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    items = FolderSource(photos, None).items
    read = FolderSource.read_file

    def fatal(source: FolderSource, name: str) -> bytes:
        if name == items[150].name:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(source, name)

    monkeypatch.setattr(FolderSource, "read_file", fatal)
    message = f"a worker process ended by signal 9 at {items[150].name} or soon after, perhaps for lack of memory"
    with pytest.raises(PreparationError, match=message):
        prepare(str(photos), tmp_path / "out", workers=2, **OPTIONS, channels=3)


def test_an_error_in_a_worker_is_told(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device", "/full")

    monkeypatch.setattr("recipe.preparation.workers.write_chunk", fail)
    with pytest.raises(OSError, match="No space left"):
        prepare(str(photos), tmp_path / "out", workers=2, **OPTIONS)


@pytest.fixture(scope="session")
def messy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("messy") / "messy"
    return folder, messy_folder(folder)


@pytest.mark.parametrize("workers", [1, 2])
def test_broken_files_are_listed_and_nothing_is_lost(messy: tuple[Path, dict[str, str]], tmp_path: Path, workers: int):
    folder, reasons = messy
    out = tmp_path / "out"
    options = {"resolution": 8, "shard_size": "4kb"}
    with pytest.raises(PreparationError) as error:
        prepare(str(folder), out, workers=workers, **options)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("4 items cannot be used")
    assert [line.split(":")[0].strip() for line in lines[1:-1]] == list(reasons)
    assert all(reason in line for line, reason in zip(lines[1:-1], reasons.values(), strict=True))
    assert not out.exists()
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / ".out.partial").glob("shard.*")}
    assert kept
    facts = prepare(str(folder), out, workers=workers, skip_errors=True, **options)
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert (facts.num_images, facts.num_skipped, facts.label_dim) == (43, 4, 4)
    assert facts.images_per_class == {"0": 19, "1": 10, "2": 2, "3": 12}
    assert facts.class_names == ["birds", "cars,and more", "one", "Äpfel 🍎"]
    skipped = json.loads((out / "skipped.json").read_text())
    assert list(skipped) == list(reasons)
    assert number_of_samples(check_shards(str(out))) == 43


def test_a_pass_that_cannot_succeed_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = {f"{index:03d}.png": b"broken" for index in range(400)} | {"000.png": png(noise(8, 8, 0))}
    folder = write_folder(tmp_path / "data", files)
    with pytest.raises(PreparationError, match=r"100 items or more cannot be used(.|\n)*the same command goes on"):
        prepare(str(folder), tmp_path / "out", workers=2, shard_size="64kb")
    for name in files:
        (folder / name).write_bytes(b"broken")
    with pytest.raises(PreparationError, match=r"no picture can be read: 000\.png is not an image"):
        prepare(str(folder), tmp_path / "out", skip_errors=True)
    with pytest.raises(PreparationError, match="every item was skipped; the first is not an image"):
        prepare(str(folder), tmp_path / "out", skip_errors=True, resolution=8, channels=3)


def test_inspection(undisturbed: Path, tmp_path: Path):
    text = inspect(str(undisturbed), tmp_path / "sheet.png")
    table = dict(line.split("  ", 1) for line in text.splitlines() if not line.startswith(" "))
    assert table["samples"].strip() == str(MANY)
    assert table["columns"].strip() == "image png, label int"
    assert table["contact sheet"].strip() == str(tmp_path / "sheet.png")
    assert "100  class 1" in text
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (8 * 18 - 2, 12 * 18 - 2, 3)
    images, _ = stored(undisturbed, 16, 3, 3)
    assert np.array_equal(sheet[:16, :16], images[0].transpose(1, 2, 0))
    assert np.array_equal(sheet[18:34, 18:34], images[13 * MANY // 96].transpose(1, 2, 0))


BAD_SETTINGS = {
    "resolution": ({"resolution": 4}, "--resolution 4: must be at least 8"),
    "crop without resolution": ({"crop": "none"}, "--crop none: needs --resolution"),
    "crop": ({"resolution": 8, "crop": "left"}, "--crop left: must be one of center-crop, center-crop-dhariwal, none"),
    "channels": ({"channels": 2}, "--channels 2: must be one of 1, 3"),
    "encoding": ({"encoding": "jpeg"}, "--encoding jpeg: must be one of png, webp, raw"),
    "grey webp": ({"encoding": "webp", "channels": 1}, "--encoding webp: knows no grey pictures"),
    "compression": ({"compression": "rar"}, "--compression rar: must be one of br, bz2, snappy, zstd"),
    "time in shards": ({"compression": "gz:9"}, "--compression gz:9: writes the time into each shard; use zstd"),
    "hashes": ({"hashes": ("sha1", "crc")}, "--hashes crc: must be among "),
    "background": ({"background": "#12"}, "--background #12: is no colour"),
    "shard size": ({"shard_size": "lots"}, "--shard-size lots: must be from 1kb to below 4gb"),
    "shard size too large": ({"shard_size": "4gb"}, "--shard-size 4gb: must be from"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_settings_are_refused(case: str):
    settings, message = BAD_SETTINGS[case]
    with pytest.raises(PreparationError) as error:
        Settings(**settings)
    assert message in str(error.value)


def test_all_bad_settings_are_told_at_once():
    with pytest.raises(PreparationError, match=r"--resolution 4: .*; --encoding x: .*; --background y: "):
        Settings(resolution=4, encoding="x", background="y")


def test_pictures_without_a_resolution(tmp_path: Path):
    wide = write_folder(tmp_path / "wide", {"a.png": png(noise(9, 8, 0))})
    with pytest.raises(PreparationError, match="the first picture has 9x8 pixels; give --resolution"):
        prepare(str(wide), tmp_path / "out")
    grey = write_folder(tmp_path / "grey", {"a.png": png(noise(9, 9, 0, channels=1))})
    with pytest.raises(PreparationError, match="--encoding webp: knows no grey pictures"):
        prepare(str(grey), tmp_path / "out", encoding="webp")


COMMANDS = {
    "nothing": ([], ["SOURCE is missing"]),
    "no out": (["digits"], ["--out is missing"]),
    "workers": (["digits", "--out", "{}/out", "--workers", "0"], ["--workers 0: must be at least 1"]),
    "no source": (["{}/none", "--out", "{}/out"], ["{}/none: there is no such folder or archive"]),
    "scheme": (["digits", "--out", "gs://bucket/x"], ["gs://bucket/x: is not a folder that can be used"]),
    "nothing to inspect": (["--inspect", "{}/none"], ["{}/none: holds no index.json"]),
    "unwritable": (["digits", "--resolution", "8", "--out", "/proc/none/out"], ["/proc/none"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", COMMANDS)
def test_bad_commands_are_refused(tmp_path: Path, case: str):
    arguments, mentions = COMMANDS[case]
    done = run_forked("prepare.py", *(text.format(tmp_path) for text in arguments))
    assert_refused(done, *(text.format(tmp_path) for text in mentions))


@pytest.mark.slow
def test_a_messy_folder_to_training(messy: tuple[Path, dict[str, str]], tmp_path: Path):
    folder, _ = messy
    out = tmp_path / "shards"
    options = ["--out", out, "--resolution", 8, "--crop", "center", "--background", "#ff8000"]
    done = run_forked("prepare.py", folder, *options)
    assert_refused(done, "4 items cannot be used", "birds/cut.png: is a damaged image", "--skip-errors")
    done = run_forked("prepare.py", folder, *options, "--skip-errors")
    assert done.returncode == 0, done.stderr
    assert "now holds 43 images of 3x8x8 in 4 classes" in done.stdout and "4 items skipped" in done.stdout
    done = run_forked("prepare.py", "--inspect", out, "--sheet", tmp_path / "sheet.png")
    assert done.returncode == 0, done.stderr
    assert "Äpfel 🍎" in done.stdout and (tmp_path / "sheet.png").is_file()
    overrides = ["model.img_channels=3", "model.label_dim=4", "duration=4ba"]
    done = train(out, tmp_path / "run", *overrides)
    assert done.returncode == 0, done.stderr


def test_shards_go_to_s3_one_by_one(
    bucket_folder: str, photos: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    place = open_place(bucket_folder)
    place.write(".probe-0123456789abcdef", b"")  # left by a kill while access was tried

    def start_over() -> None:
        place.delete([entry.name for entry in place.list()])

    kill_at_random(random.Random(1), 4, 0.5, start_over, str(photos), bucket_folder, workers=2, **OPTIONS)
    assert_complete_or_absent(place)
    prepare(str(photos), bucket_folder, workers=2, **OPTIONS)
    assert {entry.name: place.read(entry.name) for entry in place.list()} == contents(undisturbed)
    assert not list(tmp_path.iterdir()), "scratch is left"
    assert prepare(str(photos), bucket_folder, **OPTIONS).num_images == MANY
    with pytest.raises(PreparationError, match="holds other data, or other settings made it"):
        prepare(str(photos), bucket_folder, resolution=8)
    prepare(str(photos), bucket_folder, resolution=8, overwrite=True)
    index = json.loads(place.read("index.json"))
    wanted = {"index.json", "stats.json", "labels.npy", *(shard["raw_data"]["basename"] for shard in index["shards"])}
    assert {entry.name for entry in place.list()} == wanted
    assert re.search(rf"samples +{MANY}\n", inspect(bucket_folder, tmp_path / "sheet.png"))
    prepare(bucket_folder, tmp_path / "back", encoding="raw")
    images, labels = stored(tmp_path / "back", 8)
    assert np.array_equal(images[5], read_back(place, index, 5))
    assert read_labels(open_source(Source("data", "cache", bucket_folder))).tolist() == labels


def test_replaced_data_in_s3_are_incomplete_at_once(bucket_folder: str, photos: Path, monkeypatch: pytest.MonkeyPatch):
    """A kill after any of the deletions leaves no index that lists what is gone."""
    prepare("digits", bucket_folder, resolution=8)
    place = open_place(bucket_folder)
    delete = type(place).delete

    def killed(self: Place, names: Sequence[str]) -> None:
        delete(self, list(names)[-1:])
        if not names[0].startswith(".probe"):
            raise StorageError("killed")

    monkeypatch.setattr(type(place), "delete", killed)
    with pytest.raises(StorageError, match="killed"):
        prepare(str(photos), bucket_folder, overwrite=True, **OPTIONS)
    assert_complete_or_absent(place)
    assert place.list("shard."), "it was after the first deletion"


def assert_complete_or_absent(place: Place) -> None:
    """Where there is an index, there is all that it lists, and the statistics."""
    sizes = {entry.name: entry.size for entry in place.list()}
    if "index.json" in sizes:
        shards = json.loads(place.read("index.json"))["shards"]
        assert all(sizes[shard["raw_data"]["basename"]] == shard["raw_data"]["bytes"] for shard in shards)
        assert "stats.json" in sizes


def read_back(place: Place, index: dict, row: int) -> np.ndarray:
    from streaming.base.format.mds.reader import MDSReader

    name = index["shards"][0]["raw_data"]["basename"]
    folder = Path(os.environ["TMPDIR"]) / "first shard"
    write_folder(folder, {name: place.read(name)})
    reader = MDSReader.from_json(str(folder), None, index["shards"][0])
    return np.asarray(reader[row]["image"]).transpose(2, 0, 1)


def test_scratch_for_s3_holds_only_what_is_being_written(
    bucket_folder: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    most = 0
    from recipe.storage.s3 import S3Place

    upload = S3Place.upload

    def watched(self: S3Place, name: str, path: Path) -> None:
        nonlocal most
        most = max(most, sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()))
        upload(self, name, path)

    monkeypatch.setattr(S3Place, "upload", watched)
    prepare(str(photos), bucket_folder, workers=1, **OPTIONS)
    assert 0 < most < 2 * 40 * 1024


def test_s3_that_cannot_be_used_is_told_before_the_work(bucket_folder: str, photos: Path):
    with pytest.raises(StorageError, match="no such bucket"):
        prepare(str(photos), "s3://no-such-bucket/x", **OPTIONS)
    open_place(bucket_folder).write("checkpoints/ep0.pt", b"precious")
    for overwrite in (False, True):
        with pytest.raises(PreparationError, match=r"holds other files, such as checkpoints/ep0\.pt"):
            prepare(str(photos), bucket_folder, overwrite=overwrite, **OPTIONS)


@pytest.mark.slow
def test_streamed_back_from_s3_by_two_ranks_with_a_small_cache(
    object_store: ObjectStore, bucket_folder: str, tmp_path: Path
):
    size = 200_000
    prepare("digits", bucket_folder, resolution=8, encoding="raw", shard_size="64kb")
    total = sum(entry.size for entry in open_place(bucket_folder).list("shard."))
    assert total > size
    overrides = [f"data.remote={bucket_folder}", f"data.cache_limit={size}b", "duration=20ba", "global_batch_size=64"]
    overrides += ["checkpoints.interval=20ba"]
    done = train(tmp_path / "cache", tmp_path / "run", *overrides, ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    cached = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*.mds"))
    assert 0 < cached <= size


def test_folders_that_only_look_like_its_own_stay(photos: Path, tmp_path: Path):
    """Beside OUT it makes `.OUT.partial`, and for a moment `.OUT.old-...`; what a user has under such names is his."""
    out = tmp_path / "out"
    old = tmp_path / ".out.old"
    old.mkdir()
    (old / "thesis.txt").write_text("mine")
    prepare(str(photos), out, workers=1, **OPTIONS)
    prepare(str(photos), out, workers=1, overwrite=True, **OPTIONS | {"resolution": 8})
    assert (old / "thesis.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".out")) == [".out.old"]
    partial = tmp_path / ".other.partial"
    partial.mkdir()
    (partial / "thesis.txt").write_text("mine")
    with pytest.raises(PreparationError, match=r"\.other\.partial, where it would be made, holds other files, such as"):
        prepare(str(photos), tmp_path / "other", workers=1, **OPTIONS)
    assert [path.name for path in partial.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("how", ["folder", "link"])
def test_a_source_is_not_replaced_by_itself(how: str, photos: Path, tmp_path: Path):
    out = tmp_path / "out"
    prepare(str(photos), out, workers=1, **OPTIONS)
    (tmp_path / "link").symlink_to(out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    source = out if how == "folder" else tmp_path / "link"
    with pytest.raises(PreparationError, match=r"--out .*out: is the source, which would be replaced"):
        prepare(str(source), out, workers=1, overwrite=True, resolution=8)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
