"""The official tool's latents are a source: the shards and facts are those of encoding; a bad array is one line."""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers.picture_sets import noise, png, write_folder, write_tar, write_zip
from helpers.small_vae import SIZE, SMALL, facts_of, stored
from recipe.preparation.latent_arrays import VAE, LatentFormat
from recipe.preparation.pipeline import prepare
from recipe.preparation.sources.items import ItemError, PreparationError
from recipe.preparation.sources.opening import open_source


def npy(array: NDArray[Any], **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def moments(seed: int, size: int = 8) -> NDArray[np.float32]:
    """Means around the paper's, and standard deviations, [8, size, size]."""
    random = np.random.default_rng(seed)
    mean = random.normal(np.array([5.81, 3.25, 0.12, -2.15])[:, None, None], 3.5, (4, size, size))
    return np.concatenate([mean, np.exp(random.normal(-2, 1, (4, size, size)))]).astype(np.float32)


def files(arrays: dict[int, bytes]) -> dict[str, bytes]:
    """Names of the official tool, and its dataset.json, which gives the number of each array as its label."""
    named = {f"{n // 1000:05d}/img-mean-std-{n:08d}.npy": data for n, data in arrays.items()}
    labels = [[name, number] for name, number in zip(named, arrays, strict=True)]
    return named | {"dataset.json": json.dumps({"labels": labels}).encode()}


def official(path: Path, arrays: dict[int, bytes] | None = None) -> Path:
    return write_zip(path, files({n: npy(moments(n)) for n in range(6)} if arrays is None else arrays))


def test_what_was_encoded_elsewhere_gives_the_shards_of_encoding(encoded: Path, tmp_path: Path):
    samples, expected = stored(encoded), facts_of(encoded)
    arrays = np.concatenate([samples["mean"], samples["std"]], axis=1)
    labels = [[f"00000/img-mean-std-{n:08d}.npy", int(label)] for n, label in enumerate(samples["label"])]
    content = {name: npy(array) for (name, _), array in zip(labels, arrays, strict=True)}
    path = write_zip(tmp_path / "own-sd.zip", content | {"dataset.json": json.dumps({"labels": labels}).encode()})
    facts = prepare(str(path), tmp_path / "out", workers=2, shard_size=SMALL["shard_size"])
    found = stored(tmp_path / "out")
    for name in ("mean", "std", "label"):
        assert np.array_equal(found[name], samples[name]) and found[name].dtype == samples[name].dtype
    same = (
        "kind",
        "num_images",
        "img_resolution",
        "img_channels",
        "pixel_resolution",
        "label_dim",
        "images_per_class",
        "whitening",
    )
    ours = facts.to_json()
    assert {name: ours[name] for name in same} == {name: expected[name] for name in same}
    for name in ("mean", "std", "sigma_data"):
        assert ours[name] == pytest.approx(expected[name], rel=1e-12)
    assert (facts.vae, facts.vae_sha256, facts.pixel_resolution) == (VAE, None, SIZE)


@pytest.mark.parametrize("kind", ["zip", "folder", "tar"])
def test_every_place_of_arrays_is_read(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    content = files({n: npy(moments(n)) for n in range(6)})
    write = {"zip": write_zip, "folder": write_folder, "tar": write_tar}[kind]
    facts = prepare(str(write(tmp_path / "data", content)), tmp_path / "out", latent_dtype="float16")
    found = stored(tmp_path / "out")
    assert found["label"].tolist() == list(range(6)) == list(range(facts.label_dim or 0))
    for number in range(6):
        assert np.array_equal(found["mean"][number], moments(number)[:4].astype(np.float16))
        assert np.array_equal(found["std"][number], moments(number)[4:].astype(np.float16))
    said = capsys.readouterr().out
    assert "are latents of 8x8, which the official tool encodes from 64x64 pixels by stabilityai/sd-vae-ft-mse" in said
    assert facts.sigma_data == pytest.approx(0.45, abs=0.05)


def test_measured_whitening(tmp_path: Path):
    facts = prepare(str(official(tmp_path / "a.zip")), tmp_path / "out", whitening="measured")
    assert facts.whitening is not None and facts.mean is not None
    assert tuple(facts.whitening.mean) == tuple(facts.mean)
    assert facts.sigma_data == pytest.approx(0.5, rel=1e-9)


def spoiled(at: tuple[int, ...], value: float) -> NDArray[np.float32]:
    array = moments(0)
    array[at] = value
    return array


BROKEN = {
    "channels": (npy(moments(0)[:4]), r"is an array of float32 with shape [4, 8, 8], but latents of the official tool"),
    "not square": (npy(moments(0)[:, :, :7]), "with shape [8, 8, 7]"),
    "a batch": (npy(moments(0)[None]), "with shape [1, 8, 8, 8]"),
    "doubles": (npy(moments(0).astype(np.float64)), "is an array of float64"),
    "whole numbers": (npy(moments(0).astype(np.uint8)), "is an array of uint8"),
    "objects": (npy(np.array([{}]), allow_pickle=True), "is an array of object"),
    "another size": (npy(moments(0, 16)), "has 16x16 latent pixels, but the first one 8x8"),
    "nan": (npy(spoiled((0, 1, 2), np.nan)), "has numbers that are not finite"),
    "infinite": (npy(spoiled((5, 1, 2), np.inf)), "has numbers that are not finite"),
    "below 0": (npy(spoiled((4, 1, 2), -1)), "has standard deviations below 0"),
    "cut": (npy(moments(0))[:-5], "is cut short or too long, with 2043 bytes of numbers"),
    "too long": (npy(moments(0)) + b"x", "is cut short or too long"),
    "header cut": (npy(moments(0))[:40], "is a damaged array ("),
    "header": (npy(moments(0)).replace(b"'shape'", b"'shaqe'"), "is a damaged array (KeyError"),
    "empty": (b"", "is an empty file"),
    "a picture": (png(noise(8, 8, 0)), "is no array of NumPy's"),
    "huge": (npy(moments(0)).replace(b"(8, 8, 8), }", b"(8,99,99), }"), "is cut short or too long"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_bad_array_is_one_line_like_a_bad_picture(case: str, tmp_path: Path):
    data, reason = BROKEN[case]
    path = official(tmp_path / "a.zip", {n: npy(moments(n)) for n in range(4)} | {4: data})
    with pytest.raises(PreparationError) as error:
        prepare(str(path), tmp_path / "out")
    lines = str(error.value).splitlines()
    assert len(lines) == 3 and lines[1].startswith("  00000/img-mean-std-00000004.npy: ") and reason in lines[1]
    facts = prepare(str(path), tmp_path / "out", skip_errors=True)
    assert (facts.num_images, facts.num_skipped) == (4, 1)
    assert list(json.loads((tmp_path / "out" / "skipped.json").read_text())) == ["00000/img-mean-std-00000004.npy"]


def test_nothing_that_can_be_used(tmp_path: Path):
    path = official(tmp_path / "a.zip", {0: b"", 1: npy(moments(0)[:4])})
    with pytest.raises(PreparationError, match=r"no latents can be read: 00000/img-mean-std-00000000\.npy is an empty"):
        prepare(str(path), tmp_path / "out", skip_errors=True)


def test_the_first_array_that_can_be_read_decides_the_size(tmp_path: Path):
    path = official(tmp_path / "a.zip", {0: b"x", 1: npy(moments(0)), 2: npy(moments(1))})
    assert prepare(str(path), tmp_path / "out", skip_errors=True).img_resolution == 8


def test_orders_of_bytes_and_axes():
    array = moments(3)
    for other in (array.astype(">f4"), np.asfortranarray(array)):
        assert np.array_equal(LatentFormat(8)(npy(other)), array)


def test_what_float16_cannot_hold(tmp_path: Path):
    path = official(tmp_path / "a.zip", {0: npy(moments(0)), 1: npy(spoiled((0, 0, 0), 1e5))})
    with pytest.raises(PreparationError, match="has numbers beyond 65504; give --latent-dtype float32"):
        prepare(str(path), tmp_path / "out", latent_dtype="float16")
    with pytest.raises(ItemError, match="is no file of an array"):
        LatentFormat(8)(moments(0).astype(np.uint8))


OPTIONS = {
    "--resolution 64": {"resolution": 64},
    "--crop none": {"resolution": 64, "crop": "none"},
    "--channels 3": {"channels": 3},
    "--encoding png": {"encoding": "png"},
    "--vae OWNER/NAME": {"vae": "OWNER/NAME"},
    "--background black": {"background": "black"},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_for_pictures_are_refused(option: str, tmp_path: Path):
    path = official(tmp_path / "a.zip")
    rest = re.escape(f": 00000/img-mean-std-00000000.npy and the others are latents already, encoded by {VAE}")
    with pytest.raises(PreparationError, match=f"{option}.*{rest}"):
        prepare(str(path), tmp_path / "out", **OPTIONS[option])
    assert not (tmp_path / "out").exists()


def test_some_arrays_among_pictures_are_broken_pictures(tmp_path: Path):
    content = {f"{n}.png": png(noise(8, 8, n)) for n in range(3)} | {"x.npy": npy(moments(0))}
    source = write_folder(tmp_path / "data", content)
    assert not open_source(str(source)).holds_latents
    with pytest.raises(PreparationError, match=r"x\.npy: is not an image"):
        prepare(str(source), tmp_path / "out")
