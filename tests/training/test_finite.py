"""Weights that are not finite are never stored, whichever of them they are, and the way back is named and works."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from composer.core import Algorithm, Callback, State
from composer.loggers import Logger

from helpers.commands import train_arguments
from helpers.forks import train
from helpers.run_folders import run_folder
from helpers.small_snapshots import NETWORK, small_network, stored, write_run
from helpers.step_inputs import inputs_algorithm
from helpers.training import Examples, fit
from recipe.configuration.reader import read_config
from recipe.data.facts import DataFacts
from recipe.edm2.networks.precond import Precond
from recipe.storage.addresses import open_place
from recipe.training.algorithms import PowerEMA
from recipe.training.callbacks import EMASnapshots
from recipe.training.checkpointing import Checkpoints
from recipe.training.finite import NotFiniteError, way_back, within
from recipe.training.folder import RunFolder
from recipe.training.initial_weights import InitError, load_initial_weights
from recipe.training.model import DiffusionModel, unwrap
from recipe.weights.checkpoints import list_checkpoints
from recipe.weights.posthoc import reconstruct
from recipe.weights.snapshots import (
    SnapshotError,
    SnapshotInfo,
    check_finite,
    is_intact,
    list_snapshots,
    load_network,
    save_snapshot,
)

BATCH, POISONED = 16, 3


class Poison(Callback):
    """Spoils something after a step, as a step can."""

    def __init__(self, spoil: Callable[[State], object]):
        self.spoil = spoil

    def batch_end(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value == POISONED:
            with torch.no_grad():
                self.spoil(state)


def _weight(state: State) -> torch.Tensor:
    return next(iter(unwrap(state.model).net.parameters()))


def _average(state: State) -> torch.Tensor:
    return next(iter(unwrap(state.model).averages()[0][1].parameters()))


def _moment(state: State) -> torch.Tensor:
    return next(iter(state.optimizers[0].state.values()))["exp_avg_sq"]


SPOILT: dict[str, tuple[Callable[[State], object], str]] = {
    "one weight NaN": (lambda state: _weight(state).view(-1)[0].fill_(math.nan), "weights"),
    "one weight infinite": (lambda state: _weight(state).view(-1)[-1].fill_(-math.inf), "weights"),
    "weights too large to be normalised": (lambda state: _weight(state).fill_(1e30), "weights"),
    "weights beyond float16": (lambda state: _weight(state).view(-1)[0].fill_(7e4), "weights"),
    "an average": (lambda state: _average(state).view(-1)[0].fill_(math.nan), r"average 0\.05"),
    "a moment": (lambda state: _moment(state).view(-1)[0].fill_(math.inf), "moments of Adam"),
}


def run(folder: RunFolder, spoil: Callable[[State], object], *writers: Callback) -> None:
    torch.manual_seed(3)
    examples = Examples(torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8), torch.arange(64) % 10)
    algorithms: list[Algorithm] = [inputs_algorithm(5), PowerEMA()]
    fit(DiffusionModel(Precond(**NETWORK), [0.05]), examples, algorithms, BATCH, 6, callbacks=(Poison(spoil), *writers))


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("writer", ["snapshots", "checkpoints"])
def test_nothing_that_is_not_finite_is_stored(kind: str, writer: str, tmp_path: Path):
    folder = run_folder(tmp_path)
    snapshots = EMASnapshots(folder, BATCH, NETWORK, torch.float16, DataFacts())
    checkpoints = Checkpoints(folder, "1ba", -1)
    spoil, named = SPOILT[kind]
    with pytest.raises(NotFiniteError, match=rf"^batch {POISONED}: {named} not finite, or beyond 65504; nothing of it"):
        run(folder, spoil, *([snapshots, checkpoints] if writer == "snapshots" else [checkpoints]))
    folder.uploads.drain()
    assert [each.batch for each in list_checkpoints(open_place(tmp_path / "checkpoints"))] == [1, 2]
    if writer == "snapshots":
        assert sorted({each.nimg for each in list_snapshots(tmp_path / "snapshots")}) == [16, 32]
        for each in list_snapshots(tmp_path / "snapshots"):
            check_finite(Path(each.path))


@pytest.mark.parametrize(
    ("values", "limit", "expected"),
    [
        ([], 1.0, True),
        ([1.0, -2.0], 2.0, True),
        ([1.0, -2.5], 2.0, False),
        ([math.nan, 1.0], math.inf, False),
        ([3e38, 3e38], math.inf, True),  # whose norm is not finite
        ([-math.inf], math.inf, False),
    ],
)
def test_within(values: list[float], limit: float, expected: bool):
    assert within([torch.tensor(values), torch.empty(0, 3), torch.zeros(())], limit) is expected


def _write_checkpoints(folder: RunFolder, *batches: int) -> None:
    (folder.local / "checkpoints").mkdir(exist_ok=True)
    for batch in batches:
        torch.save({}, folder.local / "checkpoints" / f"ba{batch}-rank0.pt")


def test_the_way_back(tmp_path: Path):
    folder = run_folder(tmp_path)
    assert "There is no checkpoint yet: lower optimizer.ref_lr" in way_back(folder, 4)
    _write_checkpoints(folder, 4)
    assert "The last good checkpoint is checkpoints/ba4-rank0.pt" in way_back(folder, 5)
    assert "if that ends alike, choose another run_name" in way_back(folder, 4)
    _write_checkpoints(folder, 2, 3)
    assert "if that ends alike, delete it there to go on from ba3-rank0.pt" in way_back(folder, 4)


def test_every_reader_refuses_such_a_snapshot(tmp_path: Path):
    write_run(tmp_path, 2)
    snapshot = list_snapshots(tmp_path / "snapshots")[2]
    path = Path(snapshot.path)
    tensors = stored(small_network(0), torch.float16)
    name = next(name for name in tensors if tensors[name].dtype == torch.float16)
    tensors[name].view(-1)[-1] = math.inf
    _, info = load_network(path)
    save_snapshot(path, tensors, info)
    with pytest.raises(SnapshotError, match=rf"{path.name}: {name} holds numbers that are not finite: the run had"):
        load_network(path)
    with pytest.raises(SnapshotError, match="not finite"):
        reconstruct(list_snapshots(tmp_path / "snapshots"), torch.ones(4, 1).numpy(), torch.float32)
    with pytest.raises(SnapshotError, match="not finite"):
        check_finite(path)
    assert is_intact(path, path.name)  # as it was made
    config = read_config(train_arguments(Path("none"), Path("none"), f"init.path={path}"))
    model = DiffusionModel(small_network(1), [0.05])
    with pytest.raises(SnapshotError, match="not finite"):
        load_initial_weights(model, config, DataFacts())


def test_starting_from_a_checkpoint_that_is_not_finite(tmp_path: Path):
    folder = run_folder(tmp_path)
    run(folder, lambda state: None, Checkpoints(folder, "6ba", -1))
    path = tmp_path / "checkpoints" / "ba6-rank0.pt"
    state = torch.load(path, weights_only=False)
    state["state"]["model"]["net.unet.out_gain"].fill_(math.nan)
    torch.save(state, path)
    config = read_config(train_arguments(Path("none"), Path("none"), f"init.path={tmp_path}"))
    with pytest.raises(InitError, match=r"unet\.out_gain holds numbers that are not finite"):
        load_initial_weights(DiffusionModel(Precond(**NETWORK), [0.05]), config, DataFacts())


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_goes_on_from_the_last_good_checkpoint(ranks: int, digits: Path, tmp_path: Path):
    """Sharded on two ranks. The step that spoils all is a rate beyond all reason."""
    intervals = [f"{key}=16" for key in ("checkpoints.interval", "ema.snapshot_interval", "optimizer.rampup")]
    sharded = ["fsdp={}"] if ranks > 1 else []
    overrides = [*intervals, *sharded, "allow_changes=[optimizer.ref_lr]"]
    assert train(digits, tmp_path / "run", *overrides, "duration=48", ranks=ranks).returncode == 0
    done = train(digits, tmp_path / "run", *overrides, "duration=96", "optimizer.ref_lr=1e38", ranks=ranks)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "batch 4: weights" in done.stderr and "The last good checkpoint is" in done.stderr
    assert "ba3" in done.stderr.split("last good checkpoint is ")[1].split(",")[0]
    done = train(digits, tmp_path / "run", *overrides, "duration=96", ranks=ranks)
    assert done.returncode == 0, done.stderr
    found = list_snapshots(tmp_path / "run" / "snapshots")
    assert max(each.nimg for each in found) == 96
    for each in found:
        check_finite(Path(each.path))


@pytest.mark.slow
def test_a_checkpoint_that_is_not_finite_is_not_gone_on_from(digits: Path, tmp_path: Path):
    """As one of an earlier version of the recipe."""
    overrides = ["checkpoints.interval=16", "ema.snapshot_interval=48", "duration=48"]
    assert train(digits, tmp_path / "run", *overrides).returncode == 0
    path = tmp_path / "run" / "checkpoints" / "ba3-rank0.pt"
    state = torch.load(path, weights_only=False)
    state["state"]["model"]["net.unet.out_gain"].fill_(math.nan)
    torch.save(state, path)
    done = train(digits, tmp_path / "run", *overrides[:2], "duration=96")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert (
        "ba3-rank0.pt: holds weights, averages or moments that are not finite; delete it to go on from ba2"
        in done.stderr
    )


def test_snapshots_of_two_runs_are_not_mixed(tmp_path: Path):
    write_run(tmp_path, 2)
    for index, each in enumerate(list_snapshots(tmp_path / "snapshots")):
        info = SnapshotInfo(load_network(each.path)[1].network, each.nimg, each.sigma_rel, run="ab"[index // 3])
        save_snapshot(Path(each.path), stored(small_network(index), torch.float32), info)
    with pytest.raises(SnapshotError, match="is of another run than"):
        reconstruct(list_snapshots(tmp_path / "snapshots"), torch.ones(4, 1).numpy(), torch.float32)
