"""Pictures stored as moments of latents: those of diffusers, the same bytes whatever happens, whitened to 0.5."""

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.commands import ROOT, composer, run
from helpers.forks import Forked
from helpers.picture_sets import contents
from helpers.small_vae import COUNT, SIZE, SMALL, build, facts_of, reference, stored
from recipe.data.autoencoder import Vae, find_vae
from recipe.edm2.latents import STABLE_DIFFUSION, Whitening, unwhiten, whiten
from recipe.preparation.inspection import inspect
from recipe.preparation.moments import MomentSums
from recipe.preparation.pipeline import prepare
from recipe.preparation.sources.items import PreparationError
from recipe.storage.addresses import open_place


def test_stored_moments_are_those_of_diffusers(encoded: Path, vae_model: Any, vae_pictures: Path):
    samples = stored(encoded)
    mean, std = reference(vae_model, vae_pictures)
    assert samples["mean"].shape == samples["std"].shape == (COUNT, 4, SIZE // 8, SIZE // 8)
    assert samples["mean"].dtype == samples["std"].dtype == np.float32
    # other batches round differently
    np.testing.assert_allclose(samples["mean"], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(samples["std"], std, rtol=1e-4)
    assert samples["label"].tolist() == [0] * (COUNT // 2) + [1] * (COUNT // 2)
    assert float(mean.std()) > 0.02  # the pictures leave a trace


def test_statistics_are_those_of_draws(encoded: Path, vae_model: Any, vae_pictures: Path, vae: Path):
    facts = facts_of(encoded)
    mean, std = (moment.double() for moment in reference(vae_model, vae_pictures))
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


def test_measured_whitening_gives_half(vae: Path, vae_pictures: Path, encoded: Path, tmp_path: Path):
    facts = prepare(
        str(vae_pictures), tmp_path / "out", vae=str(vae), whitening="measured", latent_dtype="float16", **SMALL
    )
    assert facts.mean is not None and facts.std is not None
    whitening = Whitening(tuple(facts.mean), tuple(facts.std))
    assert facts.whitening == whitening
    assert facts.sigma_data == pytest.approx(0.5, rel=1e-9)
    np.testing.assert_allclose(facts.std, facts_of(encoded)["std"], rtol=1e-3)
    ours, theirs = stored(tmp_path / "out"), stored(encoded)
    for name in ("mean", "std"):
        assert ours[name].dtype == np.float16
        np.testing.assert_allclose(ours[name], theirs[name], rtol=2**-11, atol=2**-24)
    latents = torch.from_numpy(theirs["mean"])
    torch.testing.assert_close(unwhiten(whiten(latents, whitening), whitening), latents)


def test_whitening_alone_does_not_encode_again(vae: Path, vae_pictures: Path, tmp_path: Path, monkeypatch):
    constant = "--whitening measured: a channel of the latents never changes; use constants"

    def never(*arguments: Any) -> Any:
        raise AssertionError("it encodes")

    with monkeypatch.context() as patch:
        patch.setattr(MomentSums, "facts", lambda sums: (_ for _ in ()).throw(PreparationError(constant)))
        with pytest.raises(PreparationError, match=constant):
            prepare(str(vae_pictures), tmp_path / "out", vae=str(vae), whitening="measured", **SMALL)
    monkeypatch.setattr(Vae, "encode", never)
    prepare(str(vae_pictures), tmp_path / "out", vae=str(vae), whitening="constants", **SMALL)


def test_constant_channels_cannot_be_measured():
    sums = MomentSums(2, "measured")
    flat = {"mean": np.ones((2, 4, 4)), "std": np.zeros((2, 4, 4))}
    sums.add(np.zeros((1, 3, 32, 32), np.uint8), [flat])
    with pytest.raises(PreparationError, match="a channel of the latents never changes; use constants"):
        sums.facts()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("folder", marks=pytest.mark.soak), "s3"])
def test_two_ranks_killed_and_started_again_write_the_same_bytes(
    kind: str, bucket_folder: str, vae: Path, vae_pictures: Path, encoded: Path, tmp_path: Path
):
    """In S3 they replace another data set, as --overwrite allows."""
    out = str(tmp_path / "out") if kind == "folder" else bucket_folder
    options = ["--resolution", str(SIZE), "--shard-size", "32kb", "--workers", "1", "--vae", str(vae), "--overwrite"]
    arguments = (vae_pictures, "--out", out, *options)
    place = open_place(out)
    unfinished = open_place(str(tmp_path / ".out.partial")) if kind == "folder" else place
    if kind == "s3":
        prepare(str(vae_pictures), out, resolution=8)
    with Forked("prepare.py", *arguments, ranks=2) as process:
        while process.poll() is None and not unfinished.list("unfinished/"):
            time.sleep(0.005)
        process.kill()
    assert 0 < len(unfinished.list("unfinished/")) < 6
    assert "index.json" not in {entry.name for entry in place.list()}
    done = run(composer(2, *arguments, script=ROOT / "recipe" / "prepare.py"), timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"now holds {COUNT} images of 4x8x8 in 2 classes" in done.stdout
    assert {entry.name: place.read(entry.name) for entry in place.list()} == contents(encoded)
    assert {path.name for path in tmp_path.iterdir()} <= {"out"}


def test_workers_write_the_same_bytes(vae: Path, vae_pictures: Path, encoded: Path, tmp_path: Path):
    prepare(str(vae_pictures), tmp_path / "out", vae=str(vae), **{**SMALL, "workers": 2})
    assert contents(tmp_path / "out") == contents(encoded)


def test_other_channels_are_measured_by_default(vae_pictures: Path, tmp_path: Path):
    build(latent_channels=8).save_pretrained(tmp_path / "eight")
    facts = prepare(str(vae_pictures), tmp_path / "out", vae=str(tmp_path / "eight"), **SMALL)
    assert facts.whitening is not None and facts.std is not None
    assert facts.img_channels == len(facts.whitening.mean) == 8
    assert facts.whitening.std == tuple(facts.std)


def test_inspection_of_latents(encoded: Path, vae: Path, vae_model: Any, tmp_path: Path):
    text = inspect(str(encoded), tmp_path / "false.png")
    assert re.search(r"^columns +label int, mean ndarray:float32:4,8,8, std ndarray:float32:4,8,8$", text, re.MULTILINE)
    assert f"{tmp_path / 'false.png'} (latents in false colours; --vae NAME decodes them)" in text
    with Image.open(tmp_path / "false.png") as sheet:
        assert sheet.size == (12 * 10 - 2, 8 * 10 - 2)
    assert f"{tmp_path / 'sheet.png'} (decoded by {vae})" in inspect(str(encoded), tmp_path / "sheet.png", str(vae))
    with Image.open(tmp_path / "sheet.png") as image:
        sheet = np.asarray(image)
    assert sheet.shape == (2 * (SIZE + 2) - 2, 12 * (SIZE + 2) - 2, 3)
    last = torch.from_numpy(stored(encoded)["mean"][23 * COUNT // 24])
    expected = (vae_model.decode(last[None]).sample[0] * 255).clamp(0, 255).numpy().transpose(1, 2, 0)
    assert np.abs(sheet[-SIZE:, -SIZE:] - expected).max() < 1.1


def test_inspection_of_pixels_needs_no_autoencoder(digits: Path, vae: Path, tmp_path: Path):
    with pytest.raises(PreparationError, match=f"--vae {vae}: {digits} holds no latents; leave it out"):
        inspect(str(digits), tmp_path / "sheet.png", str(vae))
