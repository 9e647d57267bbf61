"""From decoded pictures to the columns of a sample. Each kind of data has one: pixels here, latents in moments.py."""

import io
import sys
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from recipe.preparation.sums import PixelSums, Sums

ENCODINGS = ("png", "webp", "raw")
COLUMNS = {"png": "png", "webp": "bytes", "raw": "ndarray:uint8"}
OPTIONS: dict[str, dict[str, Any]] = {
    "png": {"compress_level": 4},
    "webp": {"lossless": True, "exact": True, "method": 0, "quality": 20},  # of lossless files, quality is effort
}
"""Measured: PNG takes half the time of level 6 for 1% more; WebP a tenth of the time of method 4 for 11% more."""


class Encoder(Protocol):
    """Turns batches of pictures into samples.

    Attributes:
        kind: what the data are, for stats.json.
        columns: name and MDS encoding of each column but `label`.
        sample_bytes: the largest size of an encoded sample.
        batch_size: pictures that are encoded together.
    """

    kind: str
    columns: dict[str, str]
    sample_bytes: int
    batch_size: int

    def encode(self, images: NDArray[Any]) -> list[dict[str, Any]]:
        """One sample, without its label, for each of the pictures [N, C, H, W]."""
        ...

    def settings(self) -> dict[str, Any]:
        """All of it that decides what is stored."""
        ...

    def about(self) -> dict[str, Any]:
        """Entries of stats.json: at least the shape that training sees, img_resolution and img_channels."""
        ...

    def most_processes(self) -> int:
        """How many processes of one rank it has use for."""
        ...

    def sums(self) -> Sums:
        """Statistics to which nothing has been added yet."""
        ...


class PixelEncoder:
    """Stores pictures without loss: png, webp (smaller and faster, no grey; a column of bytes), or raw (large)."""

    kind = "pixels"
    batch_size = 64

    def __init__(self, encoding: str, channels: int, resolution: int):
        self.encoding = encoding
        self.channels = channels
        self.resolution = resolution
        self.columns = {"image": COLUMNS[encoding]}
        # Noise does not compress: row filters, tables and framing come on top of the pixels.
        self.sample_bytes = int(1.02 * channels * resolution**2) + 2 * resolution + 1024

    def encode(self, images: NDArray[np.uint8]) -> list[dict[str, Any]]:
        return [{"image": self._stored(image)} for image in images]

    def settings(self) -> dict[str, Any]:
        return {"encoding": self.encoding}

    def about(self) -> dict[str, Any]:
        return {"img_resolution": self.resolution, "img_channels": self.channels, "encoding": self.encoding}

    def most_processes(self) -> int:
        return sys.maxsize

    def sums(self) -> PixelSums:
        return PixelSums(self.channels)

    def _stored(self, image: NDArray[np.uint8]) -> NDArray[np.uint8] | bytes:
        if self.encoding == "raw":
            return image
        picture = Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
        file = io.BytesIO()
        picture.save(file, self.encoding, **OPTIONS[self.encoding])
        return file.getvalue()
