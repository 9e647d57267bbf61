"""Metrics at intervals: the values of what the averages draw, on any ranks, and a run that is none the different."""

import re
from pathlib import Path
from typing import get_args

import pytest
import torch

from helpers.commands import assert_refused, tensorboard, train_arguments
from helpers.forks import run_forked, train
from helpers.runs import difference, snapshots
from recipe.command_line import UserError
from recipe.configuration.outputs import Metrics
from recipe.configuration.reader import read_config
from recipe.configuration.schema import Config
from recipe.evaluation.feature_set import FeatureSet
from recipe.evaluation.metrics import METRICS
from recipe.evaluation.reference import About, save_reference
from recipe.training.metrics import check_metrics

NETWORK = "helpers.feature_networks:pixels"
SETTINGS = ("duration=16ba", "ema.snapshot_interval=8ba", "ema.snapshot_dtype=float32", "samples.num_steps=2",
            "samples.guidance=1", "samples.batch_size=9", "model.dropout=0.1")  # fmt: skip


def measuring(place: Path, **more: object) -> list[str]:
    keys = {"reference": place, "names": "[fd,dc]", "features": NETWORK, "interval": "8ba", "num_images": 50}
    keys |= more
    return [f"metrics.{name}={value}" for name, value in keys.items()]


@pytest.fixture(scope="module")
def reference(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "digits.safetensors"
    words = ["--keep-features", 100, "--features", NETWORK, "--device", "cpu", "--num", 300]
    done = run_forked("evaluate.py", "ref", digits, "--out", path, *words)
    assert done.returncode == 0, done.stderr
    return path


def logged(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = tensorboard(folder)
    names = [name for name in events.Tags()["scalars"] if name.startswith("metrics/")]
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}


@pytest.mark.slow
def test_values_and_determinism(digits: Path, reference: Path, tmp_path: Path):
    """As evaluate.py finds them for the snapshots, also on two sharded ranks; weights are bit for bit those without."""
    for name, ranks, more in (
        ("plain", 1, []),
        ("one", 1, measuring(reference)),
        ("two", 2, [*measuring(reference), "fsdp={}"]),
    ):
        done = train(digits, tmp_path / name, *SETTINGS, *more, ranks=ranks)
        assert done.returncode == 0, done.stdout + done.stderr
    plain, one = (snapshots(tmp_path / name) for name in ("plain", "one"))
    assert len(plain) == 4 and plain.keys() == one.keys()
    assert all(difference(plain[name], one[name]) == 0 for name in plain)
    found, sharded = logged(tmp_path / "one"), logged(tmp_path / "two")
    assert len(found) == 6 and {"metrics/ema-0.050/fd", "metrics/ema-0.100/coverage"} <= found.keys()
    for name, values in found.items():
        assert [step for step, _ in values] == [7, 15]  # Composer counts steps from 0
        numbers = [[value for _, value in each[name]] for each in (found, sharded)]
        assert numbers[1] == pytest.approx(numbers[0], rel=1e-2, abs=0.05)
    snapshot = tmp_path / "one" / "snapshots" / "snapshot-00000000256-0.100.safetensors"
    options = ["--ref", reference, "--features", NETWORK, "--num", 50, "--steps", 2, "--device", "cpu"]
    done = run_forked("evaluate.py", "gen", snapshot, *options)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("FD"))
    assert float(line.split()[-1]) == pytest.approx(found["metrics/ema-0.100/fd"][-1][1], rel=1e-3)


REFUSED = {
    "nowhere": ({"reference": "nowhere.safetensors"}, "nowhere.safetensors: there is no such file"),
    "other features": ({"features": "inception"}, "differ in features (inception and helpers.feature_networks:pixels)"),
    "few": ({"num_images": 5}, "--metrics dc: needs at least 6 pictures, but metrics.num_images asks for 5"),
    "unknown": ({"names": "[fid]"}, "metrics.names"),
    "average that is none": ({"sigma_rels": "[0.07]"}, "must be among the tracked averages"),
    "too few kept": ({"names": "[kid]"}, "--metrics kid: needs at least 1000 pictures"),
}


def check(config: Config) -> None:
    assert config.metrics is not None
    check_metrics(config.metrics, config.samples, 8)


@pytest.mark.parametrize(("change", "said"), REFUSED.values(), ids=REFUSED)
def test_refusals(change: dict[str, object], said: str, folder: Path):
    """Before the run begins."""
    arguments = train_arguments(folder, folder / "run", *SETTINGS, *measuring(folder / "ref.safetensors", **change))
    with pytest.raises(UserError, match=re.escape(said)):
        check(read_config(arguments))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refused")
    found = FeatureSet(300, torch.zeros(48).double(), torch.eye(48).double(), torch.zeros(100, 48))
    save_reference(folder / "ref.safetensors", About(NETWORK, "a" * 64, 8), found)
    return folder


@pytest.mark.slow
def test_refused_in_one_line(digits: Path, folder: Path, tmp_path: Path):
    done = train(digits, tmp_path / "run", *SETTINGS, *measuring(folder / "ref.safetensors", num_images=5))
    assert_refused(done, "--metrics dc: needs at least 6 pictures, but metrics.num_images asks for 5")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_the_names_are_those_that_there_are():
    (names,) = get_args(Metrics.model_fields["names"].annotation)
    assert set(get_args(names)) == set(METRICS)
