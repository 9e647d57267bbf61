"""Latents of a small autoencoder with random weights: encoded, stored, trained on, sampled and decoded."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from commands import BIN, ROOT, assert_refused, command_line, free_port, run, train_arguments
from recipe import prepare as prepare_command
from recipe import sample
from recipe.config_problems import ConfigError
from recipe.config_reader import read_config
from recipe.edm2.generate import SamplerSettings, generate
from recipe.edm2.latents import STABLE_DIFFUSION, Whitening, unwhiten, whiten
from recipe.preparation.items import PreparationError
from recipe.preparation.mds import MdsShards
from recipe.preparation.moments import MomentSums
from recipe.preparation.vae import Vae, VaeError, find_vae
from recipe.prepare import prepare
from recipe.storage.places import open_place
from recipe.storage.snapshots import SnapshotInfo, load_network, save_snapshot
from recipe.training.data import check_data
from recipe.training.statistics import DataError
from runs import losses

SIZE, COUNT = 64, 90
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


@pytest.fixture(scope="module")
def model() -> Any:
    """What diffusers itself makes of the pictures: the reference."""
    return build()


@pytest.fixture(scope="module")
def vae(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small-vae"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Coloured pictures with some structure, in two class folders."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for index in range(COUNT):
        coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        path = folder / ("cats", "dogs")[index % 2] / f"{index:03}.png"
        path.parent.mkdir(exist_ok=True)
        coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(path)
    return folder


@pytest.fixture(scope="module")
def encoded(vae: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "latents"
    prepare(str(pictures), out, vae=str(vae), **SMALL)
    return out


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


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_stored_moments_are_those_of_diffusers(encoded: Path, model: Any, pictures: Path):
    samples = stored(encoded)
    mean, std = reference(model, pictures)
    assert samples["mean"].shape == samples["std"].shape == (COUNT, 4, SIZE // 8, SIZE // 8)
    assert samples["mean"].dtype == samples["std"].dtype == np.float32
    # other batches round differently
    np.testing.assert_allclose(samples["mean"], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(samples["std"], std, rtol=1e-4)
    assert samples["label"].tolist() == [0] * (COUNT // 2) + [1] * (COUNT // 2)
    assert float(mean.std()) > 0.02  # the pictures leave a trace


def test_statistics_are_those_of_draws(encoded: Path, model: Any, pictures: Path, vae: Path):
    facts = facts_of(encoded)
    mean, std = (moment.double() for moment in reference(model, pictures))
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([mean + std * torch.randn(std.shape, generator=generator, dtype=std.dtype) for _ in range(20)])
    per_channel = draws.transpose(0, 2).flatten(1)
    np.testing.assert_allclose(facts["mean"], mean.mean((0, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(facts["std"], per_channel.std(1), rtol=0.01)
    exact = (std.square().mean((0, 2, 3)) + mean.transpose(0, 1).flatten(1).var(1, correction=0)).sqrt()
    np.testing.assert_allclose(facts["std"], exact, rtol=1e-5)
    # the constants of the paper, by default
    assert facts["whitening"] == {"mean": [5.81, 3.25, 0.12, -2.15], "std": [4.17, 4.62, 3.71, 3.28]}
    white = whiten(draws.flatten(0, 1).float(), STABLE_DIFFUSION)
    assert facts["sigma_data"] == pytest.approx(float(white.std()), rel=0.01)
    known = {name: facts[name] for name in ("kind", "img_resolution", "img_channels", "pixel_resolution", "vae")}
    assert known == {"kind": "latents", "img_resolution": 8, "img_channels": 4, "pixel_resolution": 64, "vae": vae.name}
    assert facts["vae_sha256"] == find_vae(str(vae)).sha256()
    assert str(vae) not in json.dumps(facts)


def test_measured_whitening_gives_half(vae: Path, pictures: Path, encoded: Path, tmp_path: Path):
    facts = prepare(
        str(pictures), tmp_path / "out", vae=str(vae), whitening="measured", latent_dtype="float16", **SMALL
    )
    assert facts["whitening"] == {"mean": facts["mean"], "std": facts["std"]}
    assert facts["sigma_data"] == pytest.approx(0.5, rel=1e-9)
    np.testing.assert_allclose(facts["std"], facts_of(encoded)["std"], rtol=1e-3)
    ours, theirs = stored(tmp_path / "out"), stored(encoded)
    for name in ("mean", "std"):
        assert ours[name].dtype == np.float16
        np.testing.assert_allclose(ours[name], theirs[name], rtol=2**-11, atol=2**-24)
    whitening = Whitening(facts["mean"], facts["std"])
    latents = torch.from_numpy(theirs["mean"])
    torch.testing.assert_close(unwhiten(whiten(latents, whitening), whitening), latents)


def test_whitening_alone_does_not_encode_again(vae: Path, pictures: Path, tmp_path: Path, monkeypatch):
    constant = "--whitening measured: a channel of the latents never changes; use constants"

    def never(*arguments: Any) -> Any:
        raise AssertionError("it encodes")

    with monkeypatch.context() as patch:
        patch.setattr(MomentSums, "facts", lambda sums: (_ for _ in ()).throw(PreparationError(constant)))
        with pytest.raises(PreparationError, match=constant):
            prepare(str(pictures), tmp_path / "out", vae=str(vae), whitening="measured", **SMALL)
    monkeypatch.setattr(Vae, "encode", never)
    prepare(str(pictures), tmp_path / "out", vae=str(vae), whitening="constants", **SMALL)


def test_constant_channels_cannot_be_measured():
    sums = MomentSums(2, "measured")
    flat = {"mean": np.ones((2, 4, 4)), "std": np.zeros((2, 4, 4))}
    sums.add(np.zeros((1, 3, 32, 32), np.uint8), [flat])
    with pytest.raises(PreparationError, match="a channel of the latents never changes; use constants"):
        sums.facts()


def launched(vae: Path, pictures: Path, out: Path, ranks: int) -> list[str]:
    options = ["--resolution", str(SIZE), "--shard-size", "32kb", "--workers", "1", "--vae", str(vae)]
    command = [
        str(BIN / "composer"),
        "-n",
        str(ranks),
        "--master_port",
        str(free_port()),
        str(ROOT / "recipe/prepare.py"),
    ]
    return [*command, str(pictures), "--out", str(out), *options]


def test_two_ranks_killed_and_started_again_write_the_same_bytes(
    vae: Path, pictures: Path, encoded: Path, tmp_path: Path
):
    out = tmp_path / "out"
    notes = tmp_path / ".out.partial" / "unfinished"
    launch = subprocess.Popen(launched(vae, pictures, out, 2), cwd=ROOT, start_new_session=True,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    while launch.poll() is None and not any(notes.glob("*.json")):
        time.sleep(0.005)
    os.killpg(launch.pid, signal.SIGKILL)
    launch.wait()
    written = len(list(notes.glob("*.json")))
    assert 0 < written < 6
    assert not out.exists()
    done = run(launched(vae, pictures, out, 2), timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"now holds {COUNT} images of 4x8x8 in 2 classes" in done.stdout
    assert contents(out) == contents(encoded)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_workers_write_the_same_bytes(vae: Path, pictures: Path, encoded: Path, tmp_path: Path):
    prepare(str(pictures), tmp_path / "out", vae=str(vae), **{**SMALL, "workers": 2})
    assert contents(tmp_path / "out") == contents(encoded)


@pytest.fixture(scope="module")
def trained(encoded: Path, vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the latents, with a grid of samples."""
    folder = tmp_path_factory.mktemp("run")
    changes = ("model.img_channels=4", "model.label_dim=2", "duration=15ba", "ema.snapshot_interval=15ba",
               "checkpoints.interval=15ba", "samples.interval=15ba", "samples.count=12", "samples.num_steps=4",
               "samples.guidance=1.0", f"samples.vae={vae}")  # fmt: skip
    done = run(command_line("train.py", *train_arguments(encoded, folder, *changes), launcher=True))
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
    assert info.dataset["whitening"]["mean"] == list(STABLE_DIFFUSION.mean)
    assert info.dataset["vae"] == "small-vae"


def sampled(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["sample.py", *map(str, arguments)])
    sample.main()


def test_samples_are_decoded(trained: Path, vae: Path, model: Any, tmp_path: Path, monkeypatch, capsys):
    snapshot = max((trained / "snapshots").iterdir())
    options = ("--seeds", "0-4", "--steps", 4, "--batch-size", 2, "--device", "cpu", "--grid", tmp_path / "grid.png")
    sampled(monkeypatch, snapshot, *options, "--out", tmp_path / "images", "--vae", vae)
    assert capsys.readouterr().err.count("\n") <= 1  # the bar
    net, _ = load_network(snapshot)
    white = generate(net, torch.arange(5), torch.arange(5) % 2, SamplerSettings(num_steps=4))
    latents = white * torch.tensor([4.17, 4.62, 3.71, 3.28])[:, None, None] / 0.5
    latents += torch.tensor([5.81, 3.25, 0.12, -2.15])[:, None, None]
    expected = (model.decode(latents).sample * 255).clamp(0, 255)
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


def refused(module: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: object) -> str:
    """The message of a command that exits with 2."""
    monkeypatch.setattr("sys.argv", [module.__name__, *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        module.main()
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1, message
    return message


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


def resaved(snapshot: Path, path: Path, dataset: dict[str, Any]) -> Path:
    net, info = load_network(snapshot)
    save_snapshot(path, net.state_dict(), SnapshotInfo(info.network, info.nimg, info.sigma_rel, dataset))
    return path


def test_sample_refuses_a_guide_with_another_whitening(trained: Path, vae: Path, tmp_path: Path, monkeypatch, capsys):
    snapshot = max((trained / "snapshots").iterdir())
    dataset = {"kind": "latents", "whitening": {"mean": [0.0] * 4, "std": [1.0] * 4}}
    guide = resaved(snapshot, tmp_path / "guide.safetensors", dataset)
    options = ("--out", tmp_path / "images", "--vae", vae, "--guide", guide)
    message = refused(sample, monkeypatch, capsys, snapshot, *options)
    assert f"--guide {guide}: makes latents scaled in another way than {snapshot}" in message


def test_snapshots_without_a_note_are_told_by_their_channels(trained: Path, tmp_path: Path):
    path = str(resaved(max((trained / "snapshots").iterdir()), tmp_path / "silent.safetensors", {}))
    net, info = load_network(path)
    assert sample.whitening_of(path, net, info.dataset) == STABLE_DIFFUSION
    net.img_channels = 3
    assert sample.whitening_of(path, net, info.dataset) is None
    net.img_channels = 5
    with pytest.raises(sample.SampleError, match="makes latents of 5 channels, whose scaling it does not know"):
        sample.whitening_of(path, net, info.dataset)


def test_sample_refuses_a_vae_for_pixels(trained: Path, vae: Path, tmp_path: Path):
    path = str(tmp_path / "pixels.safetensors")
    net, _ = load_network(max((trained / "snapshots").iterdir()))
    net.img_channels = 3
    with pytest.raises(sample.SampleError, match=f"--vae {vae}: {path} makes pictures, not latents; leave it out"):
        sample.to_pictures(path, net, {"kind": "pixels"}, str(vae), torch.device("cpu"))


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
        (["--vae", "VAE", "--resolution", "60"], "pictures of 60x60 pixels are no multiple of its factor 8; give "
                                                 "--resolution 56 or 64"),
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
)  # fmt: skip
def test_prepare_refuses(options: list[str], said: str, vae: Path, tmp_path: Path, monkeypatch, capsys):
    if "EIGHT" in options:
        build(latent_channels=8).save_pretrained(tmp_path / "eight")
    if torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    names = {"VAE": str(vae), "EIGHT": str(tmp_path / "eight")}
    chosen = [names.get(option, option) for option in options]
    options = ["digits", "--out", str(tmp_path / "out"), "--resolution", "32", *chosen]
    assert said in refused(prepare_command, monkeypatch, capsys, *options)
    assert not (tmp_path / "out").exists()


def test_other_channels_are_measured_by_default(pictures: Path, tmp_path: Path):
    build(latent_channels=8).save_pretrained(tmp_path / "eight")
    facts = prepare(str(pictures), tmp_path / "out", vae=str(tmp_path / "eight"), **SMALL)
    assert facts["img_channels"] == len(facts["whitening"]["mean"]) == 8
    assert facts["whitening"]["std"] == facts["std"]


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


def test_pictures_survive_as_they_would_in_diffusers(vae: Path, model: Any):
    latents = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    ours = Vae(find_vae(str(vae)), torch.device("cpu"), batch_size=2).decode(latents)
    assert ours.dtype == torch.uint8
    assert (ours - (model.decode(latents).sample * 255).clamp(0, 255)).abs().max() < 0.51
    assert len(ours.unique()) > 20


def test_numbers_that_are_not_finite_are_refused(vae: Path):
    loaded = Vae(find_vae(str(vae)), torch.device("cpu"))
    loaded.model.quant_conv.bias[0] = torch.inf
    with pytest.raises(VaeError, match="gives latents that are not finite; use --vae-dtype float32"):
        loaded.encode(np.zeros((1, 3, 32, 32), np.uint8))


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
    done = run(
        command_line("train.py", *train_arguments(encoded, tmp_path / "run", *LATENT_RUN, f"samples.vae={eight}"))
    )
    assert_refused(done, f"samples.vae {eight}: has latents of 8 channels, but model.img_channels has 4")


FORKED = """
import os, sys
import torch
torch.cuda._device_count_nvml = lambda: 1  # as on a machine with a GPU
from recipe.preparation.settings import Settings
from recipe.preparation.sources import open_source
settings = Settings(resolution=32, vae=sys.argv[1])
job = settings.job(open_source("digits", settings))
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
