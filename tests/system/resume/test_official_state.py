"""A training state in the official layout, made from a run of this recipe, goes on as that run did."""

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.commands import assert_refused, train_arguments
from helpers.forks import run_forked, train
from helpers.published_pickles import EasyDict, archived, rgb_encoder, write_published
from helpers.runs import difference, losses, part, state
from helpers.small_snapshots import NETWORK
from recipe import convert
from recipe.edm2.networks.precond import Precond

pytestmark = pytest.mark.slow
HALF, END = 16, 24  # batches of 16 images; 5000 digits are an epoch
STATE = "training-state-0000000.pt"


def published(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {
        name: own[name].reshape([]) if own[name].shape == (1,) else own[name]
        for name in Precond(**NETWORK).state_dict()
    }


def official_state(checkpoint: Path) -> bytes:
    """What the official training would have stored in that moment."""
    stored: dict[str, Any] = torch.load(checkpoint, weights_only=False)["state"]
    moments = stored["optimizers"]["Adam"]["state"]
    entries = {}
    for index, (name, _) in enumerate(Precond(**NETWORK).named_parameters()):
        own = moments[f"net.{name}"]
        shape = [] if own["exp_avg"].shape == (1,) else own["exp_avg"].shape
        entries[index] = {
            "step": own["step"].clone(),
            **{key: own[key].reshape(shape) for key in ("exp_avg", "exp_avg_sq")},
        }
    groups = [{"lr": 0.01, "betas": (0.9, 0.99), "params": list(range(len(entries)))}]
    averages = [published(stored["model"], f"emas.{key}.") for key in ("0_050", "0_100")]
    return archived(
        dict(
            state=EasyDict(cur_nimg=HALF * 16),
            net=published(stored["model"], "net."),
            optimizer={"state": entries, "param_groups": groups},
            ema=dict(stds=[0.05, 0.1], emas=averages),
        )
    )


@pytest.fixture(scope="module")
def whole(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = train(digits, folder, f"duration={END}ba")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def weights(whole: Path) -> Path:
    """The raw weights of the converted state, with the rest beside them."""
    folder = whole.parent
    (folder / STATE).write_bytes(official_state(whole / "checkpoints" / f"ba{HALF}-rank0.pt"))
    like = write_published(folder / "network-snapshot-0000000-0.050.pkl", Precond(**NETWORK), NETWORK, rgb_encoder())
    with pytest.MonkeyPatch.context() as patch:
        arguments = [folder / STATE, "--network", like, "--out", folder / "converted"]
        patch.setattr("sys.argv", ["convert.py", *map(str, arguments)])
        convert.main()
    return folder / "converted" / f"weights-{HALF * 16:011d}.safetensors"


def test_goes_on_bit_for_bit(digits: Path, whole: Path, weights: Path, tmp_path: Path):
    """Losses, weights, averages and moments; and the run that went on is one like others: it resumes."""
    folder = tmp_path / "run"
    init = f"init={{path: {weights}, whole: true}}"
    done = train(digits, folder, init, f"duration={END - 8 + 4}ba")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"init: goes on at {HALF * 16} images with the training in {weights}" in done.stdout
    done = train(digits, folder, init, f"duration={END}ba")
    assert done.returncode == 0 and "goes on at" not in done.stdout, done.stdout + done.stderr
    expected = {step: loss for step, loss in losses(whole).items() if step >= HALF}
    assert losses(folder) == expected and len(expected) == END - HALF
    ours, reference = state(folder), state(whole)
    assert ours.keys() == reference.keys()
    assert [name for name, tensor in reference.items() if not torch.equal(ours[name], tensor)] == []


LATE = """
import os, pathlib, sys, time
from streaming import StreamingDataset
from recipe import train
stamp, ask, load = pathlib.Path(sys.argv.pop(1)), StreamingDataset.state_dict, StreamingDataset.load_state_dict
def asked(self, *arguments):
    if os.environ["RANK"] == "0" and not stamp.exists():
        time.sleep(2)
        assert not stamp.exists(), "another rank has written already"
    return ask(self, *arguments)
def loaded(self, state):
    stamp.touch()
    load(self, state)
StreamingDataset.state_dict, StreamingDataset.load_state_dict = asked, loaded
train.main()
"""


def test_goes_on_sharded(digits: Path, whole: Path, weights: Path, tmp_path: Path):
    """On two ranks, one of which is late, to float32 rounding."""
    folder, script = tmp_path / "run", tmp_path / "late.py"
    script.write_text(LATE)
    init = f"init={{path: {weights}, whole: true}}"
    line = train_arguments(digits, folder, init, f"duration={END}ba", "fsdp={}")
    done = run_forked(script, tmp_path / "stamp", *line, ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    ours, reference = state(folder), state(whole)
    assert difference(part(ours, ""), part(reference, "")) < 1e-4


def test_a_missing_part_is_said_before_the_run_begins(digits: Path, weights: Path, tmp_path: Path):
    (tmp_path / weights.name).symlink_to(weights)
    init = f"init={{path: {tmp_path / weights.name}, whole: true}}"
    done = train(digits, tmp_path / "run", init)
    assert_refused(done, "init.whole: needs beside", "adam-00000000256.safetensors")
