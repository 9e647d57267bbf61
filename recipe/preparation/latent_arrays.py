"""The latents of the official tool (img512-sd.zip): arrays of 4 means and 4 standard deviations, to be stored as both.

They go the way of pictures: `LatentFormat` reads an array where `PictureFormat` decodes a picture, and `ArrayEncoder`
splits what `MomentEncoder` would have encoded. So the shards and their facts are those of encoding.
"""

import ast
import math
import re
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipe.preparation.decoding import one_reason, read_item
from recipe.preparation.moments import MomentSums
from recipe.preparation.options import SMALLEST_RESOLUTION, Settings
from recipe.preparation.sources.items import ItemError, PreparationError, Raw, Source, shown, spread

VAE = "stabilityai/sd-vae-ft-mse"  # what the official tool encodes with
FACTOR = 8  # its pixels to a latent pixel, in height and in width
CHANNELS = 4  # of its latents
ARRAY = re.compile(rb"\x93NUMPY([\x01-\x03])\x00")
NEEDS = f"latents of the official tool are float32 [{2 * CHANNELS}, N, N]: means, then standard deviations"
SENSELESS = ("resolution", "crop", "channels", "encoding", "vae", "vae_batch", "vae_dtype")  # options, for latents
LOOKS = 64  # arrays of which one has to be whole


@dataclass(frozen=True)
class LatentFormat:
    """What every array must be.

    Attributes:
        size: height and width in latent pixels; None = any.
        largest: value that can be stored.
    """

    size: int | None
    largest: float = float(np.finfo(np.float32).max)

    def __call__(self, raw: Raw) -> NDArray[np.float32]:
        """The array [8, N, N]: means, then standard deviations.

        Raises:
            ItemError: another file, type or shape, or numbers that no encoder gives.
        """
        if not isinstance(raw, bytes):
            raise ItemError("is no file of an array")
        with one_reason("is a damaged array"):
            array = _array(raw)
        if self.size is not None and array.shape[1] != self.size:
            raise ItemError(f"has {_sides(array)} latent pixels, but the first one {self.size}x{self.size}")
        if not np.isfinite(array).all():
            raise ItemError("has numbers that are not finite")
        if np.abs(array).max() > self.largest:
            raise ItemError(f"has numbers beyond {self.largest:g}; give --latent-dtype float32")
        if array[CHANNELS:].min() < 0:
            raise ItemError("has standard deviations below 0")
        return array


def _array(data: bytes) -> NDArray[np.float32]:
    """The numbers of a file of NumPy's, of which nothing is unpickled or allocated before its header was checked."""
    start = ARRAY.match(data)
    if start is None:
        raise ItemError("is no array of NumPy's (.npy)" if data else "is an empty file")
    width = 2 if start[1] == b"\x01" else 4
    begin = start.end() + width
    end = begin + int.from_bytes(data[start.end() : begin], "little")
    header = ast.literal_eval(data[begin:end].decode("latin-1").strip())
    kind, shape = np.dtype(header["descr"]), tuple(header["shape"])
    whole = all(isinstance(side, int) for side in shape)
    fits = whole and len(shape) == 3 and shape[0] == 2 * CHANNELS and shape[1] == shape[2] >= SMALLEST_RESOLUTION
    if kind.newbyteorder("=") != np.float32 or not fits:
        raise ItemError(f"is an array of {kind.name} with shape {list(shape)}, but {NEEDS}")
    content = data[end:]
    if len(content) != math.prod(shape) * kind.itemsize:
        raise ItemError(f"is cut short or too long, with {len(content)} bytes of numbers")
    array = np.frombuffer(content, kind).reshape(shape, order="F" if header["fortran_order"] else "C")
    return np.ascontiguousarray(array, np.float32)


def _sides(array: NDArray[np.float32]) -> str:
    return f"{array.shape[1]}x{array.shape[2]}"


class ArrayEncoder:
    """Splits arrays [8, N, N] into the columns mean and std.

    Args:
        size: N.
        stored: precision of the stored moments, "float32" or "float16".
        whitening: "constants" or "measured"; None = constants.
    """

    kind = "latents"
    batch_size = 64

    def __init__(self, size: int, stored: str, whitening: str | None):
        self.size = size
        self.stored = stored
        self.whitening = whitening or "constants"
        column = f"ndarray:{stored}:{CHANNELS},{size},{size}"
        self.columns = {"mean": column, "std": column}
        self.sample_bytes = 2 * CHANNELS * size * size * np.dtype(stored).itemsize

    def encode(self, images: NDArray[np.float32]) -> list[dict[str, Any]]:
        """One sample for each of the arrays [N, 8, H, W]."""
        moments = images.astype(self.stored)
        return [{"mean": array[:CHANNELS], "std": array[CHANNELS:]} for array in moments]

    def settings(self) -> dict[str, Any]:
        return {"vae": VAE, "latent_dtype": self.stored, "whitening": self.whitening}

    def about(self) -> dict[str, Any]:
        return {
            "img_resolution": self.size,
            "img_channels": CHANNELS,
            "pixel_resolution": FACTOR * self.size,
            "vae": VAE,
            "vae_sha256": None,  # the archive does not say it
        }

    def most_processes(self) -> int:
        return sys.maxsize

    def sums(self) -> MomentSums:
        return MomentSums(CHANNELS, self.whitening)


def latent_format(settings: Settings, source: Source) -> LatentFormat:
    """What the arrays of a source must be: as the first of them.

    Raises:
        PreparationError: options that are for pictures, or no array of the source can be read.
    """
    given = {field: getattr(settings, field) for field in SENSELESS}
    given["background"] = None if settings.background == Settings.background else settings.background
    wrong = [f"--{field.replace('_', '-')} {value}" for field, value in given.items() if value is not None]
    if wrong:
        raise PreparationError(
            f"{', '.join(wrong)}: {source.items[0].name} and the others are latents already, encoded by {VAE}; leave "
            "it out"
        )
    largest = float(np.finfo(settings.latent_dtype or "float32").max)
    reason = ""
    for index in spread(len(source.items), LOOKS):
        try:
            array = LatentFormat(None, largest)(read_item(source, index))
        except ItemError as error:
            reason = reason or f"{shown(source.items[index].name)} {error}"
            continue
        return LatentFormat(array.shape[1], largest)
    raise PreparationError(f"no latents can be read: {reason}, and so on; name an archive of the official tool")
