"""What fetching does in a folder that is not empty, and with snapshots that are worth nothing."""

from pathlib import Path

import pytest
import torch

from helpers.small_snapshots import NETWORK, small_network, stored, write_run
from recipe.fetch import fetch
from recipe.storage.addresses import open_place
from recipe.weights.run_contents import FetchError
from recipe.weights.snapshots import SnapshotError, SnapshotInfo, save_snapshot, snapshot_name


def test_a_users_files_are_not_overwritten(tmp_path: Path):
    """Only those of an earlier fetch of the same run are, by newer versions."""
    runs = [tmp_path / "one", tmp_path / "two"]
    for run_folder in runs:
        run_folder.mkdir()
        (run_folder / "config.yaml").write_text(f"# edm2-recipe\nrun_name: {run_folder.name}\n")
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.yaml").write_text("mine")
    for source in runs:
        place = open_place(source)
        with pytest.raises(FetchError, match=r"--out .*out: config\.yaml is there already, and is another one than"):
            fetch(place, place.list(), out, jobs=1)
    assert (out / "config.yaml").read_text() == "mine"
    (out / "config.yaml").unlink()
    (runs[0] / "config.yaml").write_text("longer than before, as of a run that goes on\n")
    for text in ("first\n", "second and longer\n"):
        (runs[0] / "config.yaml").write_text(text)
        place = open_place(runs[0])
        fetch(place, place.list(), out, jobs=1)
        assert (out / "config.yaml").read_text() == text


def test_a_snapshot_that_is_not_finite_is_refused(tmp_path: Path):
    write_run(tmp_path / "run", 1)
    path = tmp_path / "run" / "snapshots" / snapshot_name(1000, 0.05)
    net = small_network(0)
    next(net.parameters()).view(-1)[0] = float("nan")
    save_snapshot(path, stored(net, torch.float32), SnapshotInfo(NETWORK, 1000, 0.05))
    place = open_place(tmp_path / "run")
    with pytest.raises(SnapshotError, match=rf"{path.name}: .* holds numbers that are not finite"):
        fetch(place, place.list(), tmp_path / "out", jobs=1)
