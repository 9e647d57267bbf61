"""The autoencoder: found, checked, loaded, and what prepare.py answers to one that cannot be used."""

import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.commands import run, train_arguments
from helpers.small_vae import LAYERS, build, refused
from recipe import prepare as prepare_command
from recipe.configuration.problems import ConfigError
from recipe.configuration.reader import read_config
from recipe.data.autoencoder import Vae, VaeError, find_vae


def no_configuration(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text("hello")


def another_class(folder: Path) -> None:
    (folder / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')


def grey_pictures(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"in_channels": 1}))


def only_pickles(folder: Path) -> None:
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "diffusion_pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (no_configuration, "holds no config.json; name the folder of an AutoencoderKL"),
        (no_json, "its config.json is not that of an AutoencoderKL"),
        (another_class, "holds a model of the class UNet2DConditionModel, but must be an AutoencoderKL"),
        (grey_pictures, "encodes pictures of 1 channels, not RGB; name another"),
        (only_pickles, "holds no diffusion_pytorch_model.safetensors; other files of weights are not read, pickles"),
    ],
)
def test_folder_that_is_no_autoencoder(damage, said: str, vae: Path, tmp_path: Path, monkeypatch, capsys):
    folder = tmp_path / "vae"
    shutil.copytree(vae, folder)
    damage(folder)
    options = ("digits", "--out", tmp_path / "out", "--resolution", 32, "--vae", folder)
    message = refused(prepare_command, monkeypatch, capsys, *options)
    assert f"prepare.py: --vae {folder}: {said}" in message
    assert not (tmp_path / "out").exists()


def cut_short(folder: Path) -> None:
    path = folder / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def other_layers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"layers_per_block": 2}))


def other_widths(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"block_out_channels": [16] * LAYERS}))


@pytest.mark.parametrize("damage", [cut_short, other_layers, other_widths])
def test_weights_that_do_not_fit(damage, vae: Path, tmp_path: Path):
    shutil.copytree(vae, tmp_path / "vae")
    damage(tmp_path / "vae")
    files = find_vae(str(tmp_path / "vae"), "samples.vae")
    with pytest.raises(VaeError, match=r"samples\.vae .*/vae: (cannot be loaded|its weights do not fit)") as caught:
        Vae(files, torch.device("cpu"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--vae", "VAE", "--resolution", "60"],
            "pictures of 60x60 pixels are no multiple of its factor 8; give --resolution 56 or 64",
        ),
        (["--vae", "VAE", "--encoding", "png"], "--encoding png: is for pixels; leave it out with --vae"),
        (["--vae", "VAE", "--channels", "1"], "--channels 1: an autoencoder takes RGB; leave it out with --vae"),
        (["--vae", "VAE", "--vae-batch", "0"], "--vae-batch 0: must be at least 1"),
        (["--vae", "VAE", "--vae-dtype", "float16"], "--vae-dtype float16: needs a GPU, and PyTorch finds none"),
        (["--vae", "VAE", "--latent-dtype", "int8"], "--latent-dtype int8: must be one of float32, float16"),
        (["--vae", "VAE", "--whitening", "none"], "--whitening none: must be one of constants, measured"),
        (["--vae", "EIGHT", "--whitening", "constants"], "--whitening constants: are of 4 channels, but --vae"),
        (["--vae", "./nowhere"], "--vae ./nowhere: there is no such folder; name one, or a model of the Hugging Face"),
        (["--latent-dtype", "float16"], "--latent-dtype float16: is only for latents; name their autoencoder with"),
        (["--whitening", "measured"], "--whitening measured: is only for latents; name their autoencoder with --vae"),
    ],
)
def test_prepare_refuses(options: list[str], said: str, vae: Path, tmp_path: Path, monkeypatch, capsys):
    if "EIGHT" in options:
        build(latent_channels=8).save_pretrained(tmp_path / "eight")
    if torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    names = {"VAE": str(vae), "EIGHT": str(tmp_path / "eight")}
    chosen = [names.get(option, option) for option in options]
    resolution = [] if "--resolution" in chosen else ["--resolution", "32"]
    options = ["digits", "--out", str(tmp_path / "out"), *resolution, *chosen]
    assert said in refused(prepare_command, monkeypatch, capsys, *options)
    assert not (tmp_path / "out").exists()


def test_without_diffusers(vae: Path, tmp_path: Path, monkeypatch, capsys):
    missing = "needs the package diffusers (pip install 'edm2-recipe[vae]'), which is missing"
    files = find_vae(str(vae))
    for name in [name for name in sys.modules if name.split(".")[0] == "diffusers"]:
        monkeypatch.setitem(sys.modules, name, None)
    options = ("digits", "--out", tmp_path / "out", "--resolution", 32, "--vae", vae)
    assert f"--vae {vae}: {missing}" in refused(prepare_command, monkeypatch, capsys, *options)
    with pytest.raises(VaeError, match=r"needs the package diffusers"):
        Vae(files, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"samples\.vae = .*needs the package diffusers"):
        read_config(train_arguments(tmp_path, tmp_path, f"samples.vae={vae}"))


def test_local_folders_need_no_network(vae: Path, monkeypatch):
    def never(*arguments: Any) -> Any:
        raise AssertionError("it uses the network")

    monkeypatch.setattr(socket, "getaddrinfo", never)
    monkeypatch.setattr(socket.socket, "connect", never)
    Vae(find_vae(str(vae)), torch.device("cpu"))


def test_names_of_the_hub(vae: Path, monkeypatch):
    import huggingface_hub

    def fetched(name: str, allow_patterns: list[str]) -> str:
        assert "diffusion_pytorch_model.safetensors" in allow_patterns
        assert not any(pattern.endswith((".bin", "*")) for pattern in allow_patterns)
        if name != "owner/model":
            raise OSError("no such model\nreally")
        return str(vae)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    assert (find_vae("owner/model").name, find_vae("owner/model").folder) == ("owner/model", vae)
    with pytest.raises(
        VaeError, match=r"--vae owner/other: .*the Hugging Face hub does not give it \(OSError: no such"
    ):
        find_vae("owner/other")


def test_autoencoder_of_a_whole_model(vae: Path, tmp_path: Path):
    shutil.copytree(vae, tmp_path / "model" / "vae")
    assert find_vae(str(tmp_path / "model")).folder == tmp_path / "model" / "vae"


def test_loading_changes_no_random_numbers(vae: Path):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    Vae(find_vae(str(vae)), torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)


def test_pictures_survive_as_they_would_in_diffusers(vae: Path, vae_model: Any):
    latents = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    ours = Vae(find_vae(str(vae)), torch.device("cpu"), batch_size=2).decode(latents)
    assert ours.dtype == torch.uint8
    assert (ours - (vae_model.decode(latents).sample * 255).clamp(0, 255)).abs().max() < 0.51
    assert len(ours.unique()) > 20


def test_one_thread_encodes_and_decodes_whatever_there_were(vae: Path, monkeypatch: pytest.MonkeyPatch):
    """The sums of several would round in another order."""
    loaded = Vae(find_vae(str(vae)), torch.device("cpu"))
    threads: list[int] = []
    for name in ("encode", "decode"):
        work = getattr(loaded.model, name)
        monkeypatch.setattr(
            loaded.model, name, lambda x, work=work: (threads.append(torch.get_num_threads()), work(x))[1]
        )
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        loaded.encode(np.zeros((1, 3, 32, 32), np.uint8))
        loaded.decode(torch.zeros(1, 4, 4, 4))
        assert (threads, torch.get_num_threads()) == ([1, 1], 2)
    finally:
        torch.set_num_threads(before)


def test_numbers_that_are_not_finite_are_refused(vae: Path):
    loaded = Vae(find_vae(str(vae)), torch.device("cpu"))
    loaded.model.quant_conv.bias[0] = torch.inf
    with pytest.raises(VaeError, match="gives latents that are not finite; use --vae-dtype float32"):
        loaded.encode(np.zeros((1, 3, 32, 32), np.uint8))


FORKED = """
import os, sys
import torch
torch.cuda._device_count_nvml = lambda: 1  # as on a machine with a GPU
from recipe.preparation.first_look import job_of
from recipe.preparation.options import Settings
from recipe.preparation.sources.opening import open_source
job = job_of(Settings(resolution=32, vae=sys.argv[1]), open_source("digits", 32))
assert job.encoder.most_processes() == 4
import streaming
child = os.fork()
if child == 0:
    os._exit(3 if torch.cuda._is_in_bad_fork() else 0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
def test_forked_workers_can_use_a_gpu(vae: Path):
    """Whatever asks CUDA before the fork in the usual way, diffusers too, would make it unusable in workers."""
    done = run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED, str(vae)], timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
