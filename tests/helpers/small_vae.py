"""A small autoencoder with random weights, and what is compared with it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from recipe.data.samples import MdsShards
from recipe.storage.addresses import open_place

SIZE, COUNT = 64, 90  # of the pictures that it encodes
LAYERS = 4  # each but the last halves: a factor of 8, as Stable Diffusion's
SMALL: dict[str, Any] = {"resolution": SIZE, "shard_size": "32kb", "workers": 1}  # 15 pictures to a shard


def build(**changes: Any) -> Any:
    """A Stable Diffusion autoencoder with few channels and weights from a fixed seed."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "block_out_channels": (32,) * LAYERS,
        "down_block_types": ("DownEncoderBlock2D",) * LAYERS,
        "up_block_types": ("UpDecoderBlock2D",) * LAYERS,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "latent_channels": 4,
    }
    return AutoencoderKL(**(arguments | changes)).eval().requires_grad_(False)


def pixels_of(pictures: Path) -> np.ndarray:
    """uint8 [N, 3, H, W] in the order in which they are stored."""
    return np.stack([np.asarray(Image.open(path)).transpose(2, 0, 1) for path in sorted(pictures.rglob("*.png"))])


def stored(folder: Path) -> dict[str, np.ndarray]:
    shards = MdsShards(open_place(str(folder)))
    samples = [shards.sample(index) for index in range(len(shards))]
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}


def reference(model: Any, pictures: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and std of each latent pixel by diffusers alone, of pictures in [0, 1]."""
    given = torch.from_numpy(pixels_of(pictures)).float() / 255
    moments = model.encode(given).latent_dist
    return moments.mean, moments.std


def facts_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "stats.json").read_text())


def refused(module: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: object) -> str:
    """The message of a command that exits with 2."""
    monkeypatch.setattr("sys.argv", [module.__name__, *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        module.main()
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1, message
    return message


def save_pictures(folder: Path) -> None:
    """Write coloured pictures with some structure, in two class folders."""
    generator = np.random.default_rng(0)
    for index in range(COUNT):
        coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        path = folder / ("cats", "dogs")[index % 2] / f"{index:03}.png"
        path.parent.mkdir(exist_ok=True)
        coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(path)
