"""Starting from trained weights: the same network, other classes, another resolution, and what does not fit."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from helpers.commands import train_arguments
from helpers.small_snapshots import NETWORK
from recipe.configuration.reader import read_config
from recipe.data.facts import DataFacts
from recipe.edm2.networks.precond import Precond
from recipe.training.initial_weights import LABELS, InitError, load_initial_weights
from recipe.training.model import DiffusionModel
from recipe.weights.snapshots import SnapshotInfo, save_snapshot


def model(**changes: Any) -> DiffusionModel:
    made = DiffusionModel(Precond(**NETWORK | changes), [0.05, 0.1])
    made.initialize_(seed=7)
    return made


@pytest.fixture(params=["snapshot", "single", "sharded"])
def trained(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[DiffusionModel, str]:
    """A network with weights of its own, and where they are stored."""
    made = DiffusionModel(Precond(**NETWORK), [0.05])
    made.initialize_(seed=1)
    if request.param == "snapshot":
        path = tmp_path / "snapshot-00000001000-0.050.safetensors"
        save_snapshot(path, made.net.state_dict(), SnapshotInfo(NETWORK, 1000, 0.05))
        return made, str(path)
    state = {"state": {"model": made.state_dict()}}
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    if request.param == "single":
        torch.save(state, folder / "ba8-rank0.pt")
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is one process
            save(state, storage_writer=FileSystemWriter(folder / "ep0-ba8"), no_dist=True)
    return made, str(tmp_path)


def load(target: DiffusionModel, path: str) -> None:
    config = read_config(train_arguments(Path("none"), Path("none"), f"init.path={path}"))
    load_initial_weights(target, config, DataFacts())


def test_the_same_network(trained: tuple[DiffusionModel, str], capsys: pytest.CaptureFixture[str]):
    source, path = trained
    target = model()
    load(target, path)
    for net in [target.net, *(average for _, average in target.averages())]:
        for name, tensor in net.state_dict().items():
            assert torch.equal(tensor, source.net.state_dict()[name]), name
    assert f"{len(source.net.state_dict())} tensors from {path}" in capsys.readouterr().out


@pytest.mark.parametrize("label_dim", [0, 3])
def test_other_classes(label_dim: int, trained: tuple[DiffusionModel, str], capsys: pytest.CaptureFixture[str]):
    source, path = trained
    target, fresh = model(label_dim=label_dim), model(label_dim=label_dim)
    load(target, path)
    for name, tensor in target.net.state_dict().items():
        expected = fresh.net if name == LABELS else source.net
        assert torch.equal(tensor, expected.state_dict()[name]), name
    assert (f"drawn anew: {LABELS}" in capsys.readouterr().out) == (label_dim > 0)


def test_another_resolution(trained: tuple[DiffusionModel, str]):
    """Levels correspond from the top: 8x8 to 16x16, 4x4 to 8x8."""
    source, path = trained
    target = model(img_resolution=16, attn_resolutions=[8])
    load(target, path)
    own, given = target.net.state_dict(), source.net.state_dict()
    assert torch.equal(own["unet.enc.16x16_conv.weight"], given["unet.enc.8x8_conv.weight"])
    assert torch.equal(own["unet.dec.8x8_in0.attn_qkv.weight"], given["unet.dec.4x4_in0.attn_qkv.weight"])


def test_attention_that_only_one_has(trained: tuple[DiffusionModel, str], capsys: pytest.CaptureFixture[str]):
    target = model(img_resolution=16, attn_resolutions=[16])
    load(target, trained[1])
    assert "unet.enc.16x16_block0.attn_qkv.weight" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "mention"),
    [
        ({"model_channels": 32}, r"\[32, 2, 3, 3\] here and \[16, 2, 3, 3\] there"),
        ({"num_blocks": 2}, "is missing there"),
        ({"attn_resolutions": []}, "is only there"),
        ({"img_channels": 3}, r"unet.enc.8x8_conv.weight is \[16, 4, 3, 3\] here"),
    ],
)
def test_other_differences_are_listed(changes: dict[str, Any], mention: str, trained: tuple[DiffusionModel, str]):
    with pytest.raises(InitError, match=mention) as caught:
        load(model(**changes), trained[1])
    assert "only model.label_dim, model.img_resolution and augment may differ" in str(caught.value)


def test_a_folder_without_checkpoint(tmp_path: Path):
    with pytest.raises(InitError, match="holds no whole checkpoint"):
        load(model(), str(tmp_path))
