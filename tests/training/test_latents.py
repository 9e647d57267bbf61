"""Latents: drawn afresh each time, whitened, and trained on."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streaming import MDSWriter

from helpers.commands import assert_refused, train_arguments
from helpers.forks import train
from helpers.runs import losses
from recipe.configuration.reader import read_config
from recipe.configuration.schema import Loss
from recipe.data.checks import check_data, resolve, warn_of_sigma_data
from recipe.data.dataset import ImageDataset
from recipe.data.facts import DataError, DataFacts
from recipe.data.loader import training_loader
from recipe.edm2.latents import STABLE_DIFFUSION, Whitening, draw, unwhiten, whiten
from recipe.training.inputs import ExampleInputs, LoadedLatents
from recipe.weights.snapshots import SnapshotReader, list_snapshots

SHAPE = (4, 8, 8)


def write_latents(folder: Path, count: int = 64, dtype: str = "float32", **noted: Any) -> Path:
    """Shards of latents with the distribution of Stable Diffusion's, and a note beside them."""
    generator = np.random.default_rng(0)
    mean, std = (np.array(values)[:, None, None] for values in (STABLE_DIFFUSION.mean, STABLE_DIFFUSION.std))
    columns = {"mean": f"ndarray:{dtype}", "std": f"ndarray:{dtype}", "label": "int"}
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for index in range(count):
            latent = (mean + std * generator.normal(size=SHAPE)).astype(dtype)
            writer.write({"mean": latent, "std": np.full(SHAPE, 0.1, dtype), "label": index % 10})
    note = {"kind": "latents", "img_resolution": 8, "img_channels": 4, "label_dim": 10, "sigma_data": 0.5}
    (folder / "stats.json").write_text(json.dumps(note | noted))
    return folder


def test_draws_have_the_moments_of_each_latent_pixel():
    n = 1 << 14
    mean = torch.tensor([3.0, -1.0]).expand(n, 1, 1, 2)
    std = torch.tensor([0.5, 2.0]).expand(n, 1, 1, 2)
    drawn = draw(mean, std, seed=3, batch=5, ids=torch.arange(n)).flatten(1)
    assert torch.allclose(drawn.mean(dim=0), torch.tensor([3.0, -1.0]), atol=5 * 2 * n**-0.5)
    assert torch.allclose(drawn.std(dim=0) / torch.tensor([0.5, 2.0]), torch.ones(2), atol=5 * (2 * n) ** -0.5)
    assert abs(torch.corrcoef(drawn.T)[0, 1]) < 5 * n**-0.5
    assert torch.equal(draw(mean, torch.zeros_like(std), 3, 5, torch.arange(n)), mean)


def test_draws_are_fresh_and_keyed():
    mean, std, ids = torch.zeros(8, *SHAPE), torch.ones(8, *SHAPE), torch.arange(8)
    first = draw(mean, std, seed=3, batch=5, ids=ids)
    assert torch.equal(draw(mean, std, 3, 5, ids), first)
    assert torch.equal(torch.cat([draw(mean[:1], std[:1], 3, 5, ids[i : i + 1]) for i in range(8)]), first)
    assert not torch.isclose(draw(mean, std, 3, 6, ids), first).any()
    assert draw(mean.half(), std.half(), 3, 5, ids).dtype == torch.float32


def test_whitening_with_the_published_constants():
    """(x - [5.81, 3.25, 0.12, -2.15]) * 0.5 / [4.17, 4.62, 3.71, 3.28]."""
    x = torch.tensor([5.81, 3.25, 0.12, -2.15])
    expected = torch.tensor([0.5 / 4.17, 0.5 / 4.62, 0.5 / 3.71, 0.5 / 3.28])
    whitened = whiten((x + 1).reshape(1, 4, 1, 1), STABLE_DIFFUSION).flatten()
    assert torch.allclose(whitened, expected, rtol=1e-5)
    latents = torch.randn(2, *SHAPE) * 4
    assert torch.allclose(unwhiten(whiten(latents, STABLE_DIFFUSION), STABLE_DIFFUSION), latents, atol=1e-5)


def test_whitened_draws_have_the_standard_deviation_that_the_network_expects():
    n = 4096
    mean, std = (torch.tensor(values).reshape(4, 1, 1) for values in (STABLE_DIFFUSION.mean, STABLE_DIFFUSION.std))
    latents = mean + std * 0.8 * torch.randn(n, 4, 1, 1, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(n)
    loaded: LoadedLatents = {"mean": latents, "std": (std * 0.6).expand(n, 4, 1, 1), "id": ids, "label": ids % 10}
    images = ExampleInputs(1, Loss(), STABLE_DIFFUSION).draw(loaded, 0)["image"].flatten(1)
    assert torch.allclose(images.std(dim=0), torch.full((4,), 0.5), atol=5 * 0.5 * (2 * n) ** -0.5)
    assert images.mean(dim=0).abs().max() < 5 * 0.5 * n**-0.5


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_samples_of_latents(tmp_path: Path, dtype: str):
    write_latents(tmp_path / "shards", dtype=dtype)
    settings: dict[str, Any] = {"local": str(tmp_path / "shards"), "batch_size": 4, "shuffle": False}
    sample = ImageDataset(img_resolution=8, img_channels=4, label_dim=10, **settings)[3]
    assert sample.keys() == {"mean", "std", "label", "id"}
    assert sample["mean"].shape == sample["std"].shape == SHAPE
    assert sample["mean"].dtype == getattr(torch, dtype)
    assert (sample["label"].item(), sample["id"].item()) == (3, 3)
    with pytest.raises(DataError, match=r"sample 3 has a mean of shape \[4, 8, 8\]"):
        ImageDataset(img_resolution=16, img_channels=4, label_dim=10, **settings)[3]


def config_for(folder: Path, *overrides: str) -> Any:
    return read_config(train_arguments(folder, folder / "run", "model.img_channels=4", *overrides))


def test_kind_and_whitening_reach_the_facts(tmp_path: Path):
    measured = {"mean": [1.0, 2.0, 3.0, 4.0], "std": [1.0, 1.0, 2.0, 2.0]}
    data = check_data(config_for(write_latents(tmp_path / "measured", whitening=measured)))
    assert (data.samples, data.facts.kind, data.labels) == (64, "latents", None)
    assert data.facts.latent_whitening == Whitening(tuple(measured["mean"]), tuple(measured["std"]))
    facts = check_data(config_for(write_latents(tmp_path / "published"))).facts
    assert facts.latent_whitening == STABLE_DIFFUSION


REFUSED: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "mirrored": (["data.x_flip=true"], {}, r"data\.x_flip = true: .* holds latents.*; set data\.x_flip=false"),
    "augmented": (["augment={}"], {}, r"augment: .* holds latents.*; set augment=null"),
    "pixels": ([], {"kind": "pixels"}, r"says kind pixels, but the shards have the columns of latents"),
    "channels": (["model.img_channels=3"], {"img_channels": 3}, r"has 4 means .* for latents of 3 channels"),
    "channels without note": (
        ["model.img_channels=3"],
        {"img_channels": 3, "whitening": {"mean": [1], "std": [1]}},
        "has 1 means and 1 standard deviations for latents of 3 channels",
    ),
    "whitening": ([], {"whitening": {"mean": [1, 2, 3, 4], "std": [1, 1, 0, 1]}}, "standard deviations above 0"),
    "whitening of words": ([], {"whitening": {"mean": "many"}}, "whitening in stats.json is not a list of numbers"),
    "resolution": (
        ["model.img_resolution=16", "model.attn_resolutions=[8]"],
        {},
        r"model\.img_resolution is 16, but the data has 8",
    ),
}


@pytest.mark.parametrize(("overrides", "noted", "message"), REFUSED.values(), ids=REFUSED)
def test_what_latents_cannot_be(tmp_path: Path, overrides: list[str], noted: dict[str, Any], message: str):
    with pytest.raises(DataError, match=message):
        check_data(config_for(write_latents(tmp_path / "shards", **noted), *overrides))


def test_grids_of_latents_with_three_channels(tmp_path: Path):
    noted = {"img_channels": 3, "whitening": {"mean": [0, 0, 0], "std": [1, 1, 1]}}
    shards = write_latents(tmp_path / "shards", **noted)
    with pytest.raises(DataError, match=r"samples\.interval: .* holds latents, and samples.vae names no autoencoder"):
        check_data(config_for(shards, "model.img_channels=3", "samples.interval=160"))


def test_shards_of_something_else(tmp_path: Path):
    with MDSWriter(out=str(tmp_path), columns={"text": "str"}) as writer:
        for _ in range(64):
            writer.write({"text": "a"})
    with pytest.raises(DataError, match=r"has the columns \['text'\], but must have image and label"):
        check_data(config_for(tmp_path))


def test_sigma_data_of_the_data():
    config = read_config(train_arguments(Path("d"), Path("run"), "model.sigma_data=auto"))
    assert resolve(config, DataFacts(sigma_data=0.41)).network_arguments()["sigma_data"] == 0.41
    with pytest.raises(DataError, match=r"model\.sigma_data = auto: the data has no stats\.json that says sigma_data"):
        resolve(config, DataFacts())
    number = read_config(train_arguments(Path("d"), Path("run"), "model.sigma_data=0.5"))
    assert resolve(number, DataFacts(sigma_data=0.41)) is number


@pytest.mark.parametrize(("said", "warned"), [(0.5, False), (0.35, False), (0.3, True), (0.8, True), (None, False)])
def test_sigma_data_far_from_the_datas_is_warned_of(said: float | None, warned: bool, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        warn_of_sigma_data(0.5, DataFacts(sigma_data=said))
        warn_of_sigma_data("auto", DataFacts(sigma_data=said))
    assert ("model.sigma_data is 0.5, but the data has" in caplog.text) == warned


def test_loader_brings_latents(tmp_path: Path):
    config = config_for(write_latents(tmp_path / "shards"), "data.num_workers=0")
    batch = next(iter(training_loader(config, check_data(config), 16)))
    assert batch["mean"].shape == batch["std"].shape == (16, *SHAPE)


@pytest.mark.slow
def test_training_on_latents(tmp_path: Path):
    shards = write_latents(tmp_path / "shards")
    overrides = ["model.img_channels=4", "duration=8ba", "ema.snapshot_interval=8ba"]
    done = train(shards, tmp_path / "run", *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(losses(tmp_path / "run")) == 8
    with SnapshotReader(list_snapshots(tmp_path / "run" / "snapshots")[0].path) as reader:
        dataset = reader.info.dataset
    assert dataset.latent_whitening == STABLE_DIFFUSION
    refused = train(shards, tmp_path / "b", *overrides, "augment={}")
    assert_refused(refused, "augment: data.local", "set augment=null")
