"""Latents end to end: training on them, samples and grids decoded, and what does not fit together refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.commands import assert_refused, train_arguments
from helpers.forks import train
from helpers.runs import losses
from helpers.small_vae import SIZE, build, refused
from recipe import sample
from recipe.configuration.problems import ConfigError
from recipe.configuration.reader import read_config
from recipe.data.checks import check_data
from recipe.data.facts import DataError, DataFacts
from recipe.edm2.latents import STABLE_DIFFUSION, Whitening
from recipe.edm2.samplers.generate import SamplerSettings, generate
from recipe.weights.snapshots import SnapshotInfo, load_network, save_snapshot


@pytest.fixture(scope="module")
def trained(encoded: Path, vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the latents, with a grid of samples."""
    folder = tmp_path_factory.mktemp("run")
    changes = (
        "model.img_channels=4",
        "model.label_dim=2",
        "duration=15ba",
        "ema.snapshot_interval=15ba",
        "checkpoints.interval=15ba",
        "samples.interval=15ba",
        "samples.count=12",
        "samples.num_steps=4",
        "samples.guidance=1.0",
        f"samples.vae={vae}",
    )
    done = train(encoded, folder, *changes)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_training_on_latents_draws_decoded_grids(trained: Path):
    assert np.isfinite(list(losses(trained).values())).all()
    grids = sorted((trained / "samples").iterdir())
    assert len(grids) == 3
    for path in grids:
        with Image.open(path) as image:
            assert (image.size, image.mode) == ((10 * SIZE, 2 * SIZE), "RGB")
            assert np.array(image)[:SIZE].std() > 5
    _, info = load_network(next(iter((trained / "snapshots").iterdir())))
    assert info.dataset.latent_whitening == STABLE_DIFFUSION
    assert info.dataset.vae == "small-vae"


def sampled(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["sample.py", *map(str, arguments)])
    sample.main()


def test_samples_are_decoded(trained: Path, vae: Path, vae_model: Any, tmp_path: Path, monkeypatch, capsys):
    snapshot = max((trained / "snapshots").iterdir())
    options = ("--seeds", "0-4", "--steps", 4, "--batch-size", 2, "--device", "cpu", "--grid", tmp_path / "grid.png")
    sampled(monkeypatch, snapshot, *options, "--out", tmp_path / "images", "--vae", vae)
    assert capsys.readouterr().err.count("\n") <= 1  # the bar
    net, _ = load_network(snapshot)
    white = generate(net, torch.arange(5), torch.arange(5) % 2, SamplerSettings(num_steps=4))
    latents = white * torch.tensor([4.17, 4.62, 3.71, 3.28])[:, None, None] / 0.5
    latents += torch.tensor([5.81, 3.25, 0.12, -2.15])[:, None, None]
    expected = (vae_model.decode(latents).sample * 255).clamp(0, 255)
    for seed in range(5):
        with Image.open(tmp_path / "images" / f"{seed:06d}.png") as image:
            assert image.size == (SIZE, SIZE)
            difference = np.asarray(image).transpose(2, 0, 1) - expected[seed].numpy()
        assert np.abs(difference).max() < 1.1  # half a level of rounding, and that of other batches


def test_another_decoder_is_told(trained: Path, vae: Path, tmp_path: Path, monkeypatch, capsys):
    other = tmp_path / "other-vae"
    build(scaling_factor=0.5).save_pretrained(other)
    weights = bytearray((other / "diffusion_pytorch_model.safetensors").read_bytes())
    weights[-4] ^= 1
    (other / "diffusion_pytorch_model.safetensors").write_bytes(weights)
    snapshot = max((trained / "snapshots").iterdir())
    options = ("--seeds", "0", "--steps", 1, "--device", "cpu", "--out", tmp_path / "images")
    sampled(monkeypatch, snapshot, *options, "--vae", other)
    assert f"--vae {other} has other weights than small-vae of the data" in capsys.readouterr().err


def test_sample_refuses_latents_without_a_vae(trained: Path, tmp_path: Path, monkeypatch, capsys):
    snapshot = max((trained / "snapshots").iterdir())
    message = refused(sample, monkeypatch, capsys, snapshot, "--out", tmp_path / "images")
    assert f"{snapshot}: makes latents; name the autoencoder that its data were encoded with, small-vae, by" in message
    assert not (tmp_path / "images").exists()


def test_sample_refuses_a_vae_of_other_latents(trained: Path, tmp_path: Path, monkeypatch, capsys):
    snapshot = max((trained / "snapshots").iterdir())
    build(latent_channels=8).save_pretrained(tmp_path / "vae")
    message = refused(sample, monkeypatch, capsys, snapshot, "--out", tmp_path / "images", "--vae", tmp_path / "vae")
    assert f"--vae {tmp_path / 'vae'}: has latents of 8 channels, but {snapshot} has 4" in message


def resaved(snapshot: Path, path: Path, dataset: DataFacts) -> Path:
    net, info = load_network(snapshot)
    save_snapshot(path, net.state_dict(), SnapshotInfo(info.network, info.nimg, info.sigma_rel, dataset))
    return path


def test_sample_refuses_a_guide_with_another_whitening(trained: Path, vae: Path, tmp_path: Path, monkeypatch, capsys):
    snapshot = max((trained / "snapshots").iterdir())
    dataset = DataFacts(kind="latents", whitening=Whitening((0.0,) * 4, (1.0,) * 4))
    guide = resaved(snapshot, tmp_path / "guide.safetensors", dataset)
    options = ("--out", tmp_path / "images", "--vae", vae, "--guide", guide, "--guidance", 2)
    message = refused(sample, monkeypatch, capsys, snapshot, *options)
    assert f"--guide {guide}: makes latents scaled in another way than {snapshot}" in message


LATENT_RUN = ("model.img_channels=4", "model.label_dim=2", "samples.interval=15ba", "samples.guidance=1.0")


def test_config_asks_for_the_autoencoder_of_grids(encoded: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"samples\.vae: is missing: samples\.interval asks for pictures"):
        read_config(train_arguments(encoded, tmp_path, *LATENT_RUN))


def test_config_refuses_an_autoencoder_for_pixels(digits: Path, vae: Path, tmp_path: Path):
    config = read_config(train_arguments(digits, tmp_path, f"samples.vae={vae}"))
    with pytest.raises(DataError, match=r"samples\.vae = .*holds pixels; set samples\.vae=null"):
        check_data(config)


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "eight"
    build(latent_channels=8).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_train_refuses_a_vae_of_other_latents(encoded: Path, eight: Path, tmp_path: Path):
    done = train(encoded, tmp_path / "run", *LATENT_RUN, f"samples.vae={eight}")
    assert_refused(done, f"samples.vae {eight}: has latents of 8 channels, but model.img_channels has 4")
