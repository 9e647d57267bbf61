"""Runs that an earlier version of this project began are gone on with, and end where it ended them.

tests/weights/earlier holds two runs of 40 batches of 16 digits: the configuration and the checkpoint of batch 16 as one
file and as shards of two ranks, and the averages after batch 40, in float16.
"""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from helpers.commands import ROOT, TRAIN
from helpers.forks import run_forked
from helpers.runs import difference
from recipe.weights.snapshots import list_snapshots

pytestmark = pytest.mark.slow
EARLIER = ROOT / "tests" / "weights" / "earlier"


@pytest.mark.parametrize(("kind", "ranks"), [("single", 1), ("sharded", 1), ("sharded", 2)])
def test_a_run_of_the_version_before_goes_on(kind: str, ranks: int, digits: Path, tmp_path: Path):
    folder = shutil.copytree(EARLIER / kind, tmp_path / "run")
    overrides = [f"save_folder={folder}", f"data.local={digits}", "logging.interval=1ba"]
    done = run_forked(TRAIN, folder / "config.yaml", *overrides, ranks=ranks)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[batch=17/40]" in done.stderr and "[batch=16/40]" not in done.stderr
    ends = [snapshot for snapshot in list_snapshots(folder / "snapshots") if snapshot.nimg == 640]
    assert [snapshot.sigma_rel for snapshot in ends] == [0.05, 0.1]
    for snapshot in ends:
        own = load_file(snapshot.path)
        assert difference(own, load_file(EARLIER / Path(snapshot.path).name)) < 1e-2
        before = folder / "snapshots" / Path(snapshot.path).name.replace("00640", "00512")
        assert difference(own, load_file(before)) > 2e-2, "the comparison would not notice 8 batches"
