"""Networks of snapshots: what they make, and what makes pictures of it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.small_snapshots import NETWORK, small_network, stored
from helpers.small_vae import build
from recipe.data.autoencoder import Vae, find_vae
from recipe.data.facts import DataError, DataFacts
from recipe.edm2.images import to_pixels
from recipe.edm2.latents import STABLE_DIFFUSION, Whitening, unwhiten
from recipe.sampling.networks import LatentPictures, Sampled, SampleError, check_guide, load, to_pictures
from recipe.weights.snapshots import SnapshotInfo, SnapshotReader, save_snapshot

CPU = torch.device("cpu")
OTHER = Whitening((0.0,) * 4, (1.0,) * 4)


def sampled(channels: int = 4, path: str = "it", label_dim: int = 10, **facts: Any) -> Sampled:
    return Sampled(path, small_network(0, img_channels=channels, label_dim=label_dim), DataFacts(**facts))


@pytest.mark.parametrize(
    ("channels", "facts", "whitening"),
    [
        (1, {}, None),
        (3, {}, None),
        (3, {"kind": "pixels"}, None),
        (4, {}, STABLE_DIFFUSION),
        (4, {"kind": "latents"}, STABLE_DIFFUSION),
        (4, {"kind": "latents", "whitening": OTHER}, OTHER),
        (4, {"whitening": OTHER}, OTHER),
        (3, {"kind": "latents", "whitening": Whitening((0.0,) * 3, (1.0,) * 3)}, Whitening((0.0,) * 3, (1.0,) * 3)),
    ],
)
def test_what_a_snapshot_makes(channels: int, facts: dict[str, Any], whitening: Whitening | None):
    """What its facts say; without them its channels tell."""
    assert sampled(channels, **facts).whitening() == whitening


@pytest.mark.parametrize(
    ("channels", "facts", "said"),
    [
        (5, {}, "makes latents of 5 channels"),
        (3, {"kind": "latents"}, "makes latents of 3 channels"),
        (4, {"kind": "pixels"}, "makes pixels of 4 channels"),
        (4, {"kind": "sounds"}, "makes sounds of 4 channels"),
    ],
)
def test_images_that_nobody_knows_how_to_show(channels: int, facts: dict[str, Any], said: str):
    with pytest.raises(SampleError, match=f"it: {said}, whose scaling it does not know"):
        sampled(channels, **facts).whitening()


def test_whitening_of_other_channels():
    with pytest.raises(DataError, match=r"it: the whitening has 4 means .* for latents of 3 channels"):
        sampled(3, kind="latents", img_channels=3, whitening=OTHER).whitening()


def test_pixels_need_no_autoencoder():
    assert to_pictures(sampled(3), None, CPU) is to_pixels
    with pytest.raises(SampleError, match="--vae some: it makes pictures, not latents; leave it out"):
        to_pictures(sampled(3), "some", CPU)


@pytest.mark.parametrize(("facts", "named"), [({}, "such as the folder of sd-vae-ft-mse"), ({"vae": "mine"}, "mine")])
def test_latents_need_an_autoencoder(facts: dict[str, Any], named: str):
    with pytest.raises(
        SampleError, match=rf"it: makes latents; name the autoencoder .* encoded with, {named}, by --vae"
    ):
        to_pictures(sampled(4, **facts), None, CPU)


def test_pictures_of_latents(vae, capsys):
    """The same whether the autoencoder stays where it works or not, and another one is told of on stderr."""
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    files = find_vae(str(vae))
    expected = Vae(files, CPU).decode(unwhiten(latents, STABLE_DIFFUSION))
    assert torch.equal(to_pictures(sampled(4, vae_sha256=files.sha256()), str(vae), CPU)(latents), expected)
    assert capsys.readouterr().err == ""
    assert torch.equal(to_pictures(sampled(4, vae="other", vae_sha256="0"), str(vae), CPU)(latents), expected)
    assert f"--vae {vae} has other weights than other of the data" in capsys.readouterr().err
    assert torch.equal(LatentPictures(files, STABLE_DIFFUSION, CPU, idle=CPU)(latents), expected)


def test_an_autoencoder_of_other_latents(tmp_path):
    build(latent_channels=8).save_pretrained(tmp_path / "eight")
    with pytest.raises(ValueError, match="has latents of 8 channels, but it has 4"):
        to_pictures(sampled(4), str(tmp_path / "eight"), CPU)


def test_decoding_leaves_the_autoencoder_where_it_was(vae, monkeypatch: pytest.MonkeyPatch):
    moves: list[str] = []
    monkeypatch.setattr(Vae, "to", lambda vae, device: moves.append(str(device)))
    pictures = LatentPictures(find_vae(str(vae)), STABLE_DIFFUSION, torch.device("meta"), idle=CPU)
    pictures(torch.zeros(1, 4, 4, 4))
    assert moves == ["meta", "cpu"]


@pytest.mark.parametrize(
    ("guide", "said"),
    [
        (sampled(3, "guide"), "makes images of another shape than it"),
        (sampled(4, "guide", label_dim=5), "knows other classes than it"),
        (sampled(4, "guide", kind="latents", whitening=OTHER), "makes latents scaled in another way than it"),
    ],
)
def test_guides_that_do_not_fit(guide: Sampled, said: str):
    with pytest.raises(SampleError, match=f"--guide guide: {said}"):
        check_guide(guide, sampled(4))


def test_guides_that_fit():
    for guide in (sampled(4, "guide"), sampled(4, "guide", label_dim=0), sampled(4, whitening=STABLE_DIFFUSION)):
        check_guide(guide, sampled(4))


def test_a_snapshot_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its identity, which is of its contents alone, comes with it."""
    for name, seed in (("one", 1), ("copy", 1), ("other", 2)):
        tensors = stored(small_network(seed), torch.float32)
        save_snapshot(tmp_path / f"{name}.safetensors", tensors, SnapshotInfo(NETWORK, 64, 0.1))
    opened, enter = [], SnapshotReader.__enter__
    monkeypatch.setattr(SnapshotReader, "__enter__", lambda reader: opened.append(reader) or enter(reader))
    one, copy, other = (
        load(str(tmp_path / f"{name}.safetensors"), CPU, torch.float32) for name in ("one", "copy", "other")
    )
    assert len(opened) == 3
    assert one.identity == copy.identity != other.identity
