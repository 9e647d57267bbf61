"""First, last and in between: where intervals end, what stays, and what the first step does.

Batches of 16 images and intervals that batches step over: config.yaml allows only multiples of the batch, but a run may
go on with another batch.
"""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.callbacks import CheckpointSaver
from composer.core import Algorithm, Callback, State
from composer.loggers import Logger

from helpers.run_folders import run_folder
from helpers.small_snapshots import NETWORK
from helpers.step_inputs import inputs_algorithm
from helpers.training import Examples, fit, flat
from recipe.data.facts import DataFacts
from recipe.edm2.ema import power_function_beta
from recipe.edm2.lr import learning_rate
from recipe.edm2.networks.precond import Precond, project_weights_
from recipe.edm2.samplers.generate import SamplerSettings
from recipe.training.algorithms import ForcedWeightNorm, InverseSqrtLR, PowerEMA, ScrubGradients
from recipe.training.callbacks import EMASnapshots, SampleGrid, snapshot_tensors
from recipe.training.checkpointing import Checkpoints
from recipe.training.folder import PROGRESS, RunFolder
from recipe.training.model import DiffusionModel, unwrap
from recipe.training.stopping import UnsavableError
from recipe.weights.checkpoints import retain
from recipe.weights.snapshots import SnapshotReader, list_snapshots

BATCH = 16


def tiny_model(sigma_rels: tuple[float, ...] = (0.05,)) -> DiffusionModel:
    torch.manual_seed(3)
    return DiffusionModel(Precond(**NETWORK), list(sigma_rels))


def train(model: DiffusionModel, steps: int, *callbacks: Callback, rampup: int = 32) -> dict[str, list[float]]:
    torch.manual_seed(4)
    examples = Examples(torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8), torch.arange(64) % 10)
    algorithms: list[Algorithm] = [
        ForcedWeightNorm(),
        InverseSqrtLR(BATCH, 0.01, 8, rampup),
        inputs_algorithm(5),
        ScrubGradients(),
        PowerEMA(),
    ]
    return fit(model, examples, algorithms, BATCH, steps, callbacks=callbacks)


def snapshots(folder: RunFolder, interval: int, keep: int = -1, dtype: torch.dtype = torch.float32) -> EMASnapshots:
    return EMASnapshots(folder, interval, NETWORK, dtype, DataFacts(), keep)


def times(folder: Path) -> list[int]:
    return [snapshot.nimg for snapshot in list_snapshots(folder / "snapshots")]


# One run of 7 steps, in which each case writes to a folder of its own

STEPS = 7
PASSED = {  # interval -> images seen when it acts
    16: [16, 32, 48, 64, 80, 96, 112],  # each batch
    32: [32, 64, 96, 112],  # every second batch, which is not the last
    56: [64, 112],  # the second time in the last batch, exactly
    50: [64, 112],  # and stepped over
    40: [48, 80, 112],
    17: [32, 48, 64, 80, 96, 112],  # just after a batch
    31: [32, 64, 96, 112],  # just before one
    5: [16, 32, 48, 64, 80, 96, 112],  # several in a batch
    112: [112],  # as long as the run
    1000: [112],  # longer
}
GRIDS = {40: [48, 80, 112], 1000: [112], None: []}
KEPT = {-1: [16, 32, 48, 64, 80, 96, 112], 1: [112], 2: [96, 112], 7: [16, 32, 48, 64, 80, 96, 112]}
CHECKPOINTS = {  # interval and how many stay -> batches of those that are left
    ("1ba", -1): [1, 2, 3, 4, 5, 6, 7],
    ("3ba", -1): [3, 6, 7],
    ("7ba", -1): [7],
    ("9ba", -1): [7],
    ("1ba", 1): [7],
    ("1ba", 2): [6, 7],
    ("2ba", 2): [6, 7],
    ("3ba", 9): [3, 6, 7],
}
OTHERS = ["notes.txt", "snapshot-00000000016-0.250.safetensors", "posthoc-00000000016-0.130.safetensors"]


class Averages(Callback):
    """Notes each average after each batch."""

    def __init__(self):
        self.after: dict[tuple[int, float], torch.Tensor] = {}

    def batch_end(self, state: State, logger: Logger) -> None:
        for sigma_rel, ema in unwrap(state.model).averages():
            self.after[state.timestamp.sample.value, sigma_rel] = flat(ema).clone()


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Averages]:
    root = tmp_path_factory.mktemp("boundaries")
    folders: list[RunFolder] = []

    def new(name: str) -> RunFolder:
        folders.append(run_folder(root / name))
        return folders[-1]

    def crowded(keep: int) -> RunFolder:
        (root / f"keep-{keep}" / "snapshots").mkdir(parents=True)
        for name in OTHERS:
            (root / f"keep-{keep}" / "snapshots" / name).write_text("someone's")
        return new(f"keep-{keep}")

    averages = Averages()
    callbacks: list[Callback] = [averages]
    callbacks += [snapshots(new(f"snapshots-{interval}"), interval) for interval in PASSED]
    callbacks += [snapshots(crowded(keep), BATCH, keep) for keep in KEPT]
    callbacks += [
        SampleGrid(new(f"grids-{interval}"), interval, 2, SamplerSettings(num_steps=1), 2) for interval in GRIDS
    ]
    callbacks += [Checkpoints(new(f"checkpoints-{interval}-{keep}"), interval, keep) for interval, keep in CHECKPOINTS]
    train(tiny_model((0.05, 0.1)), STEPS, *callbacks, rampup=0)
    for folder in folders:
        folder.uploads.drain()
        assert folder.uploads.failure is None
    return root, averages


@pytest.mark.parametrize("interval", PASSED)
def test_snapshots_after_the_batches_that_pass_a_multiple(interval: int, ran: tuple[Path, Averages]):
    assert times(ran[0] / f"snapshots-{interval}") == [nimg for nimg in PASSED[interval] for _ in ("0.05", "0.1")]


@pytest.mark.parametrize("interval", GRIDS)
def test_grids_after_the_batches_that_pass_a_multiple(interval: int | None, ran: tuple[Path, Averages]):
    names = ("ema-0.050", "ema-0.100", "raw")
    found = sorted(path.name for path in (ran[0] / f"grids-{interval}" / "samples").glob("*"))
    assert found == [f"{nimg:011d}-{name}.png" for nimg in GRIDS[interval] for name in names]


@pytest.mark.parametrize(("interval", "keep"), CHECKPOINTS)
def test_checkpoints_at_intervals_and_at_the_end(interval: str, keep: int, ran: tuple[Path, Averages]):
    folder = ran[0] / f"checkpoints-{interval}-{keep}"
    found = {path.name for path in (folder / "checkpoints").iterdir()}
    assert found == {f"ba{batch}-rank0.pt" for batch in CHECKPOINTS[interval, keep]}
    assert (folder / PROGRESS).read_text() == f"ba{STEPS}-rank0.pt"


@pytest.mark.parametrize("keep", KEPT)
def test_the_newest_snapshots_of_each_average_stay(keep: int, ran: tuple[Path, Averages]):
    ours = [f"snapshot-{nimg:011d}-{length}.safetensors" for nimg in KEPT[keep] for length in ("0.050", "0.100")]
    found = {path.name for path in (ran[0] / f"keep-{keep}" / "snapshots").iterdir()}
    assert found - set(OTHERS) == set(ours)
    assert set(OTHERS) <= found


def test_snapshots_hold_the_averages_of_their_time(ran: tuple[Path, Averages]):
    root, averages = ran
    found = list_snapshots(root / "snapshots-16" / "snapshots")
    assert [(snapshot.nimg, snapshot.sigma_rel) for snapshot in found] == sorted(averages.after)
    names = [name for name, _ in tiny_model().net.named_parameters()]
    for snapshot in found:
        with SnapshotReader(snapshot.path) as reader:
            assert (reader.info.nimg, reader.info.sigma_rel) == (snapshot.nimg, snapshot.sigma_rel)
            stored = torch.cat([reader.read(name).flatten() for name in names])
        assert torch.equal(stored, averages.after[snapshot.nimg, snapshot.sigma_rel])


@pytest.mark.parametrize("keep", [0, -2])
def test_keeping_none_is_no_setting(keep: int, tmp_path: Path):
    """The configuration refuses it; here nothing is deleted before it is noticed."""
    folder = run_folder(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "ba8-rank0.pt").write_text("someone's")
    with pytest.raises(AssertionError):
        snapshots(folder, BATCH, keep)
    with pytest.raises(AssertionError):
        retain(folder.place.child("checkpoints"), keep)
    assert (tmp_path / "checkpoints" / "ba8-rank0.pt").exists()


# What else they do


def test_training_goes_on_while_a_snapshot_waits_to_be_written():
    """It is a copy: steps taken meanwhile do not reach it."""
    net = tiny_model().net
    tensors = snapshot_tensors(net, torch.float32)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor += 1
    assert tensors.keys() == before.keys()
    assert all(torch.equal(tensors[name], before[name]) for name in before)


def test_snapshots_round_averages_and_nothing_else():
    """The Fourier features are no averages: a rounded frequency would be another network."""
    net = tiny_model().net
    tensors = snapshot_tensors(net, torch.float16)
    buffers = dict(net.named_buffers())
    assert len(buffers) == 4
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensors[name], tensor if name in buffers else tensor.half()), name
        assert tensors[name].dtype == (torch.float32 if name in buffers else torch.float16), name


def test_a_checkpoint_waits_for_the_snapshots_of_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A run that goes on from it must not lack one; nor may one that cannot be stored be passed over."""
    folder, there = run_folder(tmp_path), []
    monkeypatch.setattr(CheckpointSaver, "_save_checkpoint", lambda *_: there.append(times(tmp_path)))
    store = EMASnapshots._store

    def slowly(*arguments: Any) -> None:
        time.sleep(0.2)
        if len(there) == 2:
            raise OSError("no space")
        store(*arguments)

    monkeypatch.setattr(EMASnapshots, "_store", slowly)
    with pytest.raises(UnsavableError, match="no space"):
        train(tiny_model(), 4, snapshots(folder, BATCH), Checkpoints(folder, "1ba", -1))
    assert there == [[16], [16, 32]]


def test_grids_leave_the_network_training(tmp_path: Path):
    """Its samples come from a network without dropout; the step after it has dropout again."""
    modes: list[tuple[bool, bool]] = []

    class Mode(Callback):
        def before_forward(self, state: State, logger: Logger) -> None:
            model = unwrap(state.model)
            modes.append((model.net.training, any(ema.training for _, ema in model.averages())))

    class Grid(SampleGrid):
        def draw(self, net: Precond) -> torch.Tensor:
            assert not net.training
            return super().draw(net)

    train(tiny_model(), 3, Mode(), Grid(run_folder(tmp_path), BATCH, 1, SamplerSettings(num_steps=1), 1))
    assert modes == [(True, False)] * 3


def test_images_of_a_grid_have_the_seeds_and_classes_of_their_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[list[int], list[int], int]] = []

    def noted(net: Precond, seeds: list[int], labels: list[int], settings: SamplerSettings, batch_size: int):
        asked.append((seeds, labels, batch_size))
        return [torch.zeros(len(seeds), 1, 8, 8)]

    monkeypatch.setattr("recipe.training.callbacks.generate_batches", noted)
    grid = SampleGrid(run_folder(tmp_path), BATCH, 23, SamplerSettings(), 5)
    assert grid.draw(tiny_model().net).shape == (23, 1, 8, 8)
    grid.draw(Precond(**{**NETWORK, "label_dim": 0}))
    seeds = list(range(23))
    assert asked == [(seeds, [*range(10), *range(10), 0, 1, 2], 5), (seeds, [-1] * 23, 5)]


# The first step


def test_the_first_step_moves_nothing_but_the_projection_and_the_averages_take_its_weights():
    """With a ramp-up the first learning rate is 0; the first average is a copy of the weights after the step."""
    model, expected = tiny_model((0.05, 0.1)), tiny_model().net
    project_weights_(expected)
    logged = train(model, 1)
    assert logged["lr-Adam/group0"] == [0]
    assert torch.equal(flat(model.net), flat(expected))
    for _, ema in model.averages():
        assert torch.equal(flat(ema), flat(model.net))


def test_without_a_ramp_up_the_first_step_has_the_full_rate():
    model, start = tiny_model(), tiny_model().net
    project_weights_(start)
    assert train(model, 1, rampup=0)["lr-Adam/group0"] == [0.01]
    assert not torch.equal(flat(model.net), flat(start))
    assert torch.equal(flat(model.averages()[0][1]), flat(model.net))


def test_first_decay_is_0_whatever_the_batch():
    for batch in (1, 16, 2048):
        assert power_function_beta(0.05, batch, batch) == 0
        assert power_function_beta(0.05, 2 * batch, batch) == pytest.approx(0.5**17.9722, rel=1e-4)


@pytest.mark.parametrize(
    ("nimg", "rate"),
    [
        (0, 0),
        (1, 1 / 320),
        (160, 0.5),
        (319, 319 / 320),
        (320, 1),
        (1600, 1),
        (1601, (1600 / 1601) ** 0.5),
        (6400, 0.5),
    ],
)
def test_ends_of_the_learning_rates_parts(nimg: int, rate: float):
    """Ramp-up to 320 images; t_ref = 100 steps of 16."""
    assert learning_rate(nimg, 16, 1, 100, 320) == pytest.approx(rate, rel=1e-12)


def test_parts_of_the_learning_rate_that_are_off():
    assert [learning_rate(nimg, 16, 1, 0, 320) for nimg in (0, 320, 10**9)] == [0, 1, 1]
    assert [learning_rate(nimg, 16, 1, 100, 0) for nimg in (0, 1600, 6400)] == [1, 1, 0.5]
    assert learning_rate(200, 16, 1, 5, 320) == pytest.approx(200 / 320 * (80 / 200) ** 0.5, rel=1e-12)
