"""From what a source holds to the array that is stored: mode, alpha, crop and size; decoding.py opens and turns it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from recipe.preparation.decoding import one_reason, upright
from recipe.preparation.sources.items import ItemError, Raw

CROPS = ("center-crop", "center-crop-dhariwal", "none")
GREY_MODES = ("1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I;16N", "I")
OPAQUE_MODES = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV")
ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
MAX_16_BITS = 65535


@dataclass(frozen=True)
class PictureFormat:
    """What every picture is brought to.

    Attributes:
        resolution: height and width in pixels.
        crop: one of CROPS; none = pictures must be square, and are resized if need be.
        resize: False = pictures must have the resolution already.
        channels: 1 (grey) or 3 (RGB).
        to_grey: whether coloured pictures may be made grey where `channels` is 1.
        background: the colour (R, G, B), 0-255, that transparent pixels are laid on.
    """

    resolution: int
    crop: str = "center-crop"
    resize: bool = True
    channels: int = 3
    to_grey: bool = True
    background: tuple[int, int, int] = (255, 255, 255)

    def __call__(self, raw: Raw) -> NDArray[np.uint8]:
        """The picture as uint8 [channels, resolution, resolution].

        Raises:
            ItemError: not an image, a damaged one, one beyond Pillow's limit of pixels, or one against the rules above.
        """
        with one_reason():
            picture = self._cropped(self._in_mode(upright(raw)))
        array = np.asarray(picture)
        return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))

    def _in_mode(self, picture: Image.Image) -> Image.Image:
        """The picture in mode L or RGB."""
        if self.channels == 1 and not self.to_grey and not is_grey(picture):
            raise ItemError("is in colour, but the first pictures are grey; give --channels 3, or 1 to make it grey")
        if picture.mode.startswith("I"):
            picture = _eight_bits(picture)
        elif picture.mode == "F":
            raise ItemError("has floating point pixels (mode F), whose range is not known; convert it to 8 or 16 bits")
        elif picture.mode in ALPHA_MODES or "transparency" in picture.info:
            picture = self._on_background(picture)
        elif picture.mode == "LAB":
            picture = _from_lab(picture)
        elif picture.mode not in OPAQUE_MODES:
            raise ItemError(f"has Pillow's mode {picture.mode}, which is not known here; convert it")
        return picture.convert("L" if self.channels == 1 else "RGB")

    def _on_background(self, picture: Image.Image) -> Image.Image:
        picture = (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, (*self.background, 255)), picture)

    def _cropped(self, picture: Image.Image) -> Image.Image:
        width, height = picture.size
        n = self.resolution
        if not self.resize and (width, height) != (n, n):
            raise ItemError(
                f"has {width}x{height} pixels, but the first picture {n}x{n}; give --resolution to resize all"
            )
        if self.crop == "center-crop-dhariwal":
            return center_crop_dhariwal(picture, n)
        if self.crop == "none" and width != height:
            raise ItemError(f"has {width}x{height} pixels, which is not square; give another --crop than none")
        return center_crop(picture, n)


def center_crop(picture: Image.Image, resolution: int) -> Image.Image:
    """The largest square in the middle, resized by Lanczos filtering."""
    side = min(picture.size)
    return _middle(picture, side).resize((resolution, resolution), Image.Resampling.LANCZOS)


def center_crop_dhariwal(picture: Image.Image, resolution: int) -> Image.Image:
    """The crop of ADM (Dhariwal and Nichol, 2021), which the paper's ImageNet data used.

    Sides are halved by averaging while the shorter one is at least twice the target, then the picture is resized by
    bicubic filtering until the shorter side is the target, and last the square in the middle is cut out.
    """
    while min(picture.size) >= 2 * resolution:
        width, height = picture.size
        picture = picture.resize((width // 2, height // 2), Image.Resampling.BOX)
    scale = resolution / min(picture.size)
    width, height = (round(side * scale) for side in picture.size)
    if width * height > (Image.MAX_IMAGE_PIXELS or width * height):
        raise ItemError(f"is too narrow to be scaled to {resolution} pixels, with sides of {picture.size}")
    return _middle(picture.resize((width, height), Image.Resampling.BICUBIC), resolution)


def _middle(picture: Image.Image, side: int) -> Image.Image:
    left, top = ((length - side) // 2 for length in picture.size)
    return picture.crop((left, top, left + side, top + side))


def is_grey(picture: Image.Image) -> bool:
    """Whether a picture's mode has no colours."""
    return picture.mode in GREY_MODES


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A grey picture of 16 bits as one of 8, rounded to the nearest value."""
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > MAX_16_BITS:
        raise ItemError(f"has values from {values.min()} to {values.max()}, beyond 16 bits; convert it")
    return Image.fromarray(((values * 255 + MAX_16_BITS // 2) // MAX_16_BITS).astype(np.uint8))


def _from_lab(picture: Image.Image) -> Image.Image:
    """A picture of mode LAB, which Pillow itself does not convert, in RGB."""
    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(picture, *profiles, outputMode="RGB")
    assert converted is not None, "not in place"
    return converted
