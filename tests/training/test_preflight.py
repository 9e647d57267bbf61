"""What rank 0 finds out before a run, and gives to every rank."""

import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers.commands import ROOT, train_arguments
from recipe.configuration.reader import read_config
from recipe.configuration.schema import Config
from recipe.configuration.spans import Span
from recipe.data.checks import TrainingData, check_data, resolve
from recipe.data.facts import DataFacts
from recipe.edm2.networks.precond import Precond
from recipe.planning.sizes import checkpoint_bytes, snapshot_bytes
from recipe.storage.addresses import open_place
from recipe.storage.ownership import OwnedError
from recipe.training.folder import local_folder
from recipe.training.preflight import RunError, Start, check_space, find_checkpoint, prepare
from recipe.training.run import meet
from recipe.weights.snapshots import snapshot_name


def config_for(folder: Path | str, *overrides: str) -> Config:
    return read_config(train_arguments(Path("d"), Path("run"), f"save_folder={folder}", *overrides))


def test_lengths_in_images_and_steps(tmp_path: Path):
    """Of 5000 images in batches of 16, an epoch has the 312 whole ones."""
    config = config_for(tmp_path, "duration=2ep", "ema.snapshot_interval=160")
    start = Start(config, TrainingData(5000, DataFacts()), open_place(tmp_path), None)
    assert (start.steps_per_epoch, start.epoch) == (312, 4992)
    assert (start.images(config.duration), start.batches(config.duration)) == (9984, "624ba")
    assert (start.images(config.ema.snapshot_interval), start.batches(config.ema.snapshot_interval)) == (160, "10ba")
    assert start.batches(Span.parse("3ba")) == "3ba"


@pytest.mark.parametrize("name", ["checkpoints", "snapshots", "samples", "tensorboard"])
@pytest.mark.parametrize("kind", ["file", "dead link"])
def test_a_file_where_a_folder_is_to_go(kind: str, name: str, digits: Path, tmp_path: Path):
    """It is found before the run begins, not by a traceback of the library that would write there."""
    path = tmp_path / "run" / name
    path.parent.mkdir()
    if kind == "file":
        path.write_text("mine")
    else:
        path.symlink_to("/nowhere/at/all")
    with pytest.raises(RunError, match=rf"{name}: is no folder, but the run keeps {name} in one"):
        prepare(read_config(train_arguments(digits, tmp_path / "run")))
    assert [each.name for each in path.parent.iterdir()] == [name]


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
import torch
from recipe.weights import snapshots, tensor_writing
whole = tensor_writing.save_file
def write(tensors, path, metadata):
    whole(tensors, path, metadata)
    Path(path).with_name(".tmpA1b2C3").write_bytes(b"half")  # as the library calls its own
    os.kill(os.getpid(), signal.SIGKILL)
tensor_writing.save_file = write
snapshots.save_snapshot(Path(sys.argv[1]), {"a": torch.ones(2)}, snapshots.SnapshotInfo({}, 1000, 0.05))
"""


def test_what_a_kill_left_of_a_snapshot_goes(digits: Path, tmp_path: Path):
    """Before, each kill while a snapshot was written cost its size of disk for ever, in hidden files."""
    folder = tmp_path / "run" / "snapshots"
    snapshot = folder / snapshot_name(1000, 0.05)
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(snapshot)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = folder.iterdir()
    assert {path.name for path in left.iterdir()} == {snapshot.name, ".tmpA1b2C3"}
    assert open_place(folder).list() == []
    mine = folder / ".tmp-of-mine"
    mine.write_text("mine")
    _, ownership = prepare(read_config(train_arguments(digits, tmp_path / "run")))
    ownership.release()
    assert list(folder.iterdir()) == [mine]


@pytest.mark.parametrize("folder", ["runs/a", "s3://bucket/runs/a"])
def test_a_start_reaches_other_ranks_whole(folder: str):
    facts = DataFacts.from_json({"zoo": 1, "streams": [{"proportion": 1.0}], "sigma_data": 0.5}, "here")
    data = TrainingData(5000, facts.of_kind("latents", "here"), np.arange(3))
    sent = Start(config_for(folder), data, open_place(folder), None)
    found = pickle.loads(pickle.dumps(sent))
    assert found.config == sent.config
    assert found.data.facts.to_json() == sent.data.facts.to_json()
    assert found.data.labels.tolist() == [0, 1, 2]
    assert (found.place.address, found.place.is_local) == (sent.place.address, sent.place.is_local)


def test_preflight_resolves_the_configuration_and_opens_the_folder_once(digits: Path, tmp_path: Path, monkeypatch):
    opened: list[str] = []
    monkeypatch.setattr("recipe.training.preflight.open_place", lambda path: opened.append(path) or open_place(path))
    folder = tmp_path / "run"
    config = read_config(train_arguments(digits, folder, "model.sigma_data=auto", "data.class_balanced=true"))
    start, ownership = prepare(config)
    try:
        assert opened == [str(folder)]
        assert start.config.model.sigma_data == start.data.facts.sigma_data
        assert f"sigma_data: {start.data.facts.sigma_data}" in (folder / "config.yaml").read_text()
        assert start.data.labels is not None and np.bincount(start.data.labels).tolist() == [500] * 10
        assert (start.data.samples, start.checkpoint) == (5000, None)
        with pytest.raises(OwnedError):
            prepare(config)
    finally:
        ownership.release()


def needed_bytes(config: Config, checkpoints: int) -> int:
    net, averages = Precond(**config.network_arguments()), len(config.ema.sigma_rels)
    snapshots = 2 * averages * snapshot_bytes(net, getattr(torch, config.ema.snapshot_dtype))
    return checkpoints * checkpoint_bytes(net, averages) + snapshots


@pytest.mark.parametrize(
    ("folder", "keep", "checkpoints", "key"),
    [("local", 3, 4, "save_folder"), ("local", -1, 2, "save_folder"), ("s3://bucket/run", 3, 2, "scratch_folder")],
)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_space(folder: str, keep: int, checkpoints: int, key: str, dtype: str, tmp_path: Path, monkeypatch):
    """What is needed is the size of the files that lie on this machine's disk at one time, to the byte."""
    where = folder if folder.startswith("s3") else tmp_path / folder
    overrides = (f"checkpoints.keep={keep}", f"ema.snapshot_dtype={dtype}", f"scratch_folder={tmp_path}")
    config = config_for(where, *overrides)
    needed = needed_bytes(config, checkpoints)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=needed))
    check_space(config, open_place(config.run_folder()))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=needed - 1))
    with pytest.raises(RunError, match=rf"^{key} {tmp_path}: has .* GB free, but {checkpoints} checkpoints and two"):
        check_space(config, open_place(config.run_folder()))


def test_files_are_written_to_the_run_itself_or_to_scratch(tmp_path: Path):
    local, remote = config_for(tmp_path), config_for("s3://bucket/run", f"scratch_folder={tmp_path}")
    assert local_folder(local, open_place(local.run_folder())) == tmp_path
    assert local_folder(remote, open_place(remote.run_folder())) == tmp_path / "tiny"


def test_scratch_of_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch):
    """Containers run as users that /etc/passwd does not know, and so that two of them differ."""
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    folders = set()
    for uid in (54321, 54322):
        monkeypatch.setattr("os.getuid", lambda uid=uid: uid)
        folders.add(local_folder(config_for("s3://bucket/run"), open_place("s3://bucket/run")))
    assert len(folders) == 2


def test_progress_without_a_checkpoint_is_refused(tmp_path: Path):
    place = open_place(tmp_path)
    assert find_checkpoint(place, autoresume=True) is None
    place.write("progress.txt", b"ba8-rank0.pt\n")
    with pytest.raises(RunError, match=r"had reached checkpoint ba8-rank0\.pt, but no whole one is left"):
        find_checkpoint(place, autoresume=True)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "ba8-rank0.pt").touch()
    with pytest.raises(RunError, match="holds the checkpoints of a run, and autoresume is false"):
        find_checkpoint(place, autoresume=False)


def test_each_rank_keeps_its_own_folders(digits: Path, tmp_path: Path):
    """Of what rank 0 found out all ranks take what is the same for all; the cache of another machine is not."""
    first = read_config(train_arguments(digits, tmp_path / "run", "model.sigma_data=auto"))
    data = check_data(first)
    start = Start(resolve(first, data.facts), data, open_place(tmp_path / "run"), None)
    second = read_config(train_arguments(tmp_path / "other", tmp_path / "run", "model.sigma_data=auto"))
    met, _ = meet(second, start)
    assert met.config.data.local == str(tmp_path / "other")
    assert met.config.model.sigma_data == start.config.model.sigma_data == data.facts.sigma_data
    assert met.data is data
