"""The folder for others, loaded by diffusers in a process of its own and offline: equal outputs and samples."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.small_snapshots import NETWORK, small_network, stored
from recipe import convert
from recipe.data.facts import DataFacts
from recipe.edm2.latents import STABLE_DIFFUSION
from recipe.edm2.networks.precond import Precond
from recipe.edm2.networks.unet import Block, UNet
from recipe.edm2.samplers.guidance import guided
from recipe.edm2.samplers.heun import heun
from recipe.edm2.samplers.schedule import Denoise, sigma_steps
from recipe.weights import hub
from recipe.weights.hub_loader import EDM2
from recipe.weights.hub_model import EDM2Model
from recipe.weights.snapshots import SnapshotInfo, save_snapshot

VARIANTS: dict[str, dict[str, Any]] = {
    "usual": {},
    "unconditional": {"label_dim": 0, "attn_resolutions": [], "num_blocks": 2, "channel_mult_emb": 3},
    "latents": {
        "img_channels": 4, "clip_act": 0.5, "sigma_data": 0.3, "label_balance": 0.4, "res_balance": 0.35,
        "attn_balance": 0.2, "concat_balance": 0.4, "channel_mult": [1, 2, 2], "channel_mult_noise": 2,
    },
}  # fmt: skip
SCRIPT = """
import sys, warnings, torch
from pathlib import Path
from diffusers import AutoModel, DiffusionPipeline
from safetensors.torch import save_file
warnings.simplefilter("error")
warnings.filterwarnings("ignore", message="'mode' parameter")  # of Pillow, which diffusers still uses
found = {}
for name in sys.argv[1:]:
    x = torch.randn(4, int(name.split("-")[1]), 8, 8, generator=torch.Generator().manual_seed(0))
    sigma, labels = torch.tensor([0.01, 0.5, 2.0, 60.0]), torch.tensor([0, 3, 9, -1])
    for key, given in (("whole", dict(subfolder="unet")), ("part", {})):
        where = name if given else f"{name}/unet"
        unet = AutoModel.from_pretrained(where, trust_remote_code=True, **given)
        found[f"{name}/{key}"] = unet(x, sigma, labels).sample.detach()
    pipe = DiffusionPipeline.from_pretrained(name, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    classes = [0, 3, 9, -1] if pipe.unet.config.label_dim else None
    options = dict(class_labels=classes, num_inference_steps=6, latents=x, output_type="latent")
    found[f"{name}/sample"] = pipe(**options).images
    found[f"{name}/guided"] = pipe(**options, guidance_scale=1.7, guide=unet if classes is None else None).images
    if name == "usual-1":
        drawn = pipe(class_labels=5, num_images=2, num_inference_steps=2, generator=torch.manual_seed(0)).images
        found[f"{name}/picture"] = torch.tensor([(*image.size, len(image.getbands())) for image in drawn])
save_file(found, "out.safetensors")
print(sorted({module.split(".")[0] for module in sys.modules} & {"recipe", "composer", "streaming"}))
"""


def facts_of(changes: dict[str, Any]) -> DataFacts:
    if changes.get("img_channels") != 4:
        return DataFacts(kind="pixels")
    return DataFacts(kind="latents", whitening=STABLE_DIFFUSION, vae="stabilityai/sd-vae-ft-mse")


def net_of(name: str) -> Precond:
    return small_network(2, **VARIANTS[name.split("-")[0]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of all variants, NAME-CHANNELS."""
    folder = tmp_path_factory.mktemp("hub")
    for name, changes in VARIANTS.items():
        info = SnapshotInfo({**NETWORK, **changes}, 4096, 0.1, facts_of(changes))
        source = folder / f"{name}.safetensors"
        save_snapshot(source, stored(small_network(2, **changes), torch.float32), info)
        convert.write_hub(str(source), str(folder / f"{name}-{changes.get('img_channels', 1)}"))
    return folder


NAMES = [f"{name}-{changes.get('img_channels', 1)}" for name, changes in VARIANTS.items()]


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, torch.Tensor]:
    """What diffusers makes of them, by variant and way of loading."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # kernels as here
    environment |= {"HOME": str(folder), **offline}
    command = [sys.executable, "-c", SCRIPT, *NAMES]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
    assert "ignored" not in done.stderr and "not initialized" not in done.stderr, done.stderr
    return load_file(folder / "out.safetensors")


def given(net: Precond) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(4, net.img_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    return x, torch.tensor([0.01, 0.5, 2.0, 60.0]), torch.tensor([0, 3, 9, -1])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_three_loaders_denoise_alike(name: str, folder: Path, found: dict[str, torch.Tensor]):
    reference = net_of(name)(*given(net_of(name)))
    assert isinstance(reference, torch.Tensor)
    for loaded in (found[f"{name}/whole"], found[f"{name}/part"], EDM2(folder / name)(*given(net_of(name)))):
        assert torch.equal(loaded, reference)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_three_loaders_draw_the_same_sample(name: str, folder: Path, found: dict[str, torch.Tensor]):
    """Whole trajectories of Heun's method from the same noise."""
    net, alone = net_of(name), EDM2(folder / name)
    noise, _, labels = given(net)

    def own(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return net(x, sigma, labels)  # pyright: ignore

    def others(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return alone(x, sigma.expand(len(x)), labels)

    def weaker(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return net(x, sigma, None)  # pyright: ignore

    def sample(denoise: Denoise) -> torch.Tensor:
        return heun(denoise, noise, sigma_steps(6))

    assert torch.equal(sample(others), sample(own))
    assert torch.equal(found[f"{name}/sample"], sample(own))
    assert torch.equal(found[f"{name}/guided"], sample(guided(own, weaker, 1.7)))
    assert sample(own).std() > 0.05


@pytest.mark.slow
def test_pictures(found: dict[str, torch.Tensor]):
    assert found["usual-1/picture"].tolist() == [[8, 8, 1]] * 2


def test_arguments_and_defaults_are_the_networks():
    """An argument that is left out of a configuration means the same to diffusers' model."""
    theirs = inspect.signature(EDM2Model.__init__).parameters
    own: dict[str, inspect.Parameter] = {}
    for kind in (Precond, UNet, Block):
        own |= dict(inspect.signature(kind.__init__).parameters)
    computed = {"self", "dtype", "unet_kwargs", "block_kwargs", "in_channels", "out_channels", "emb_channels"}
    computed |= {"flavor", "resample_mode", "attention", *hub.TRAINING_ALONE}
    diffusers_alone = {"self", "latent_mean", "latent_std", "auto_map"}
    assert own.keys() - computed == theirs.keys() - diffusers_alone
    for name in theirs.keys() - diffusers_alone:
        assert theirs[name].default == own[name].default, name


def test_configurations_say_what_the_snapshot_says(folder: Path):
    unet = json.loads((folder / "latents-4" / "unet" / "config.json").read_text())
    assert (unet["latent_mean"], unet["latent_std"]) == (list(STABLE_DIFFUSION.mean), list(STABLE_DIFFUSION.std))
    assert unet["clip_act"] == 0.5 and unet["channel_mult"] == [1, 2, 2]
    assert "latent_mean" not in json.loads((folder / "usual-1" / "unet" / "config.json").read_text())
    weights = [(folder / "usual-1" / name).read_bytes() for name in (hub.MODEL, hub.UNET)]
    assert weights[0] == weights[1]
