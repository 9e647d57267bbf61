"""Decoding, modes, alpha and crops: against reference numbers and plain Pillow."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from helpers.golden_data import load
from helpers.picture_sets import ORIENTATION, noise, png, smooth
from recipe.preparation.pictures import CROPS, PictureFormat
from recipe.preparation.sources.items import ItemError, Raw

GOLDEN, SIZES = load("crop")


def saved(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def brought(raw: Raw, resolution: int = 8, **options) -> np.ndarray:
    return PictureFormat(resolution, **{"crop": "none", **options})(raw)


@pytest.mark.parametrize("crop", CROPS[:2])
@pytest.mark.parametrize("case", sorted(SIZES))
def test_crops_are_the_official_ones(case: str, crop: str):
    picture = Image.fromarray(GOLDEN[f"{case}/input"].numpy())
    made = brought(png(picture), int(SIZES[case]), crop=crop)
    assert np.array_equal(made, GOLDEN[f"{case}/{crop}"].numpy().transpose(2, 0, 1))


def test_an_image_of_the_right_size_is_kept_by_every_crop():
    pixels = noise(8, 8, 0)
    for crop in CROPS:
        assert np.array_equal(brought(png(pixels), crop=crop), pixels.transpose(2, 0, 1))
    assert np.array_equal(brought(pixels.transpose(2, 0, 1)), pixels.transpose(2, 0, 1))


def test_exif_orientation_is_followed():
    pixels = noise(8, 8, 1)
    turns = {1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 6: np.rot90(pixels, -1), 8: np.rot90(pixels)}
    for orientation, expected in turns.items():
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        data = saved(Image.fromarray(pixels), "PNG", exif=exif)
        assert np.array_equal(brought(data), expected.transpose(2, 0, 1)), orientation


@pytest.mark.parametrize("background", [(255, 255, 255), (255, 128, 0)])
def test_transparent_pixels_are_laid_on_the_background(background: tuple[int, int, int]):
    pixels, alpha = noise(8, 8, 2), noise(8, 8, 3, channels=1)
    share = alpha[..., None] / 255
    expected = pixels * share + np.array(background) * (1 - share)
    made = brought(png(np.dstack([pixels, alpha])), background=background)
    assert np.abs(made.transpose(1, 2, 0) - expected).max() <= 1
    grey = Image.merge("LA", [Image.fromarray(pixels[..., 0]), Image.fromarray(alpha)])
    expected = pixels[..., :1] * share + np.array(background) * (1 - share)
    assert np.abs(brought(png(grey), background=background).transpose(1, 2, 0) - expected).max() <= 1


def test_a_transparent_palette_entry_and_a_transparent_colour():
    picture = Image.new("P", (8, 8))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((3, 4), 1)
    made = brought(saved(picture, "PNG", transparency=0))
    assert (made[:, 4, 3] == [40, 50, 60]).all() and (made[:, 0, 0] == 255).all()
    keyed = Image.new("RGB", (8, 8), (1, 2, 3))
    keyed.putpixel((0, 0), (9, 9, 9))
    made = brought(saved(keyed, "PNG", transparency=(1, 2, 3)))
    assert (made[:, 0, 0] == 9).all() and (made[:, 1:] == 255).all()


def test_sixteen_bits_are_rounded_to_eight():
    values = np.array([0, 128, 129, 257, 32767, 32768, 65406, 65407, 65535] + [0] * 55, np.uint16).reshape(8, 8)
    for kind in ("PNG", "TIFF"):
        made = brought(saved(Image.fromarray(values), kind), channels=1)
        assert np.array_equal(made[0], np.round(values / 257).astype(np.uint8))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGB"])
def test_other_modes_are_converted_by_pillow(mode: str):
    picture = smooth(8, 8, 4).convert(mode)
    assert np.array_equal(brought(picture), np.asarray(picture.convert("RGB")).transpose(2, 0, 1))
    assert np.array_equal(brought(picture, channels=1)[0], np.asarray(picture.convert("L")))


def test_lab_is_converted_through_colour_profiles():
    picture = smooth(8, 8, 4)
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(picture, *profiles, outputMode="LAB")
    assert lab is not None and lab.mode == "LAB"
    assert np.abs(brought(lab).transpose(1, 2, 0).astype(int) - np.asarray(picture)).mean() < 3  # of 255


def test_the_first_frame_of_an_animation_is_used():
    frames = [Image.fromarray(noise(8, 8, seed)) for seed in (5, 6)]
    data = saved(frames[0], "PNG", save_all=True, append_images=frames[1:])
    assert np.array_equal(brought(data), np.asarray(frames[0]).transpose(2, 0, 1))


BROKEN = {
    "text": (b"hello", {}, "is not an image"),
    "nothing": (b"", {}, "is an empty file"),
    "cut short": (png(noise(64, 64, 0))[:4000], {}, "is a damaged image"),
    "bad checksum": (png(noise(8, 8, 0)).replace(b"IDAT", b"IDAT!", 1), {}, "is a damaged image"),
    "not square": (png(noise(8, 9, 0)), {}, "has 8x9 pixels, which is not square; give another --crop"),
    "another size": (png(noise(9, 9, 0)), {"resize": False}, "has 9x9 pixels, but the first picture 8x8"),
    "floating point": (saved(Image.new("F", (8, 8)), "TIFF"), {}, "floating point"),
    "colour among grey": (png(noise(8, 8, 0)), {"channels": 1, "to_grey": False}, "is in colour"),
    "beyond 16 bits": (saved(Image.new("I", (8, 8), 70000), "TIFF"), {}, "has values from 70000 to 70000"),
    "floats": (np.zeros((3, 8, 8), np.float32), {}, "is an array of float32"),
    "four planes": (np.zeros((8, 8, 5), np.uint8), {}, r"shape \[8, 8, 5\]"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_used_is_told(case: str):
    raw, options, reason = BROKEN[case]
    with pytest.raises(ItemError, match=reason):
        brought(raw, **options)


@pytest.mark.parametrize("limit", [30, 60])  # beyond twice the limit Pillow raises, before that it warns
def test_decompression_bombs_are_refused(monkeypatch: pytest.MonkeyPatch, limit: int):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ItemError, match=f"more than Pillow's limit of {limit} pixels"):
        brought(png(noise(8, 8, 0)))


def test_a_thread_of_pixels_does_not_become_a_huge_picture(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(ItemError, match="is too narrow"):
        brought(png(noise(1, 1000, 0)), 64, crop="center-crop-dhariwal")
