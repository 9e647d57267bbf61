"""Snapshots of a small network, and the commands that read them."""

import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.commands import command_line, run
from recipe.data.facts import DataFacts
from recipe.edm2.networks.precond import Precond
from recipe.weights.snapshots import SnapshotInfo, save_snapshot, snapshot_name

NETWORK: dict[str, Any] = dict(
    img_resolution=8,
    img_channels=1,
    label_dim=10,
    model_channels=16,
    channel_mult=[1, 2],
    num_blocks=1,
    attn_resolutions=[4],
    channels_per_head=16,
)
DATASET = DataFacts.from_json({"name": "digits", "mean": [0.25], "classes": 10}, "here")
TRACKED = (0.05, 0.10)


def small_network(seed: int, **changes) -> Precond:
    torch.manual_seed(seed)
    net = Precond(**{**NETWORK, **changes}).eval().requires_grad_(False)
    for name, parameter in net.named_parameters():
        if name.endswith("gain"):
            parameter.fill_(0.5 + 0.1 * seed)
    return net


def stored(net: Precond, dtype: torch.dtype) -> dict[str, Tensor]:
    buffers = {name for name, _ in net.named_buffers()}
    return {name: t.clone() if name in buffers else t.to(dtype) for name, t in net.state_dict().items()}


def outputs(net: Precond) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 1, net.img_resolution, net.img_resolution, generator=generator)
    return net(x, torch.tensor([0.1, 0.5, 2.0, 8.0]), torch.tensor([0, 3, 9, -1]))  # pyright: ignore


def write_run(folder: Path, count: int, dtype: torch.dtype = torch.float32, **changes) -> list[dict[str, Tensor]]:
    """Snapshots at 1000, 2000, ... images, with one set of buffers; returns the tensors in their order."""
    buffers = {name: tensor for name, tensor in small_network(0, **changes).named_buffers()}
    written = []
    for index in range(count):
        for sigma_rel in TRACKED:
            net = small_network(len(written), **changes)
            tensors = {**stored(net, dtype), **buffers}
            nimg = 1000 * (index + 1)
            info = SnapshotInfo({**NETWORK, **changes}, nimg, sigma_rel, DATASET)
            save_snapshot(folder / "snapshots" / snapshot_name(nimg, sigma_rel), tensors, info)
            written.append(tensors)
    return written


def damaged_copy(run_folder: Path, folder: Path) -> Path:
    """A run with one snapshot of another one, whose last byte is wrong."""
    source = run_folder / "snapshots" / snapshot_name(1000, 0.05)
    data = bytearray(source.read_bytes())
    data[-1] ^= 1
    (folder / "snapshots").mkdir()
    (folder / "snapshots" / source.name).write_bytes(data)
    return folder


def command(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run(command_line(name, *map(str, arguments)), timeout=120)


def refused_in_process(
    module: ModuleType, arguments: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """The message of a command that exits with 2, without the seconds that a process of its own takes to start."""
    monkeypatch.setattr("sys.argv", [module.__name__, *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        module.main()
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    return message
