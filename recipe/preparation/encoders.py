"""From decoded pictures to the columns of a sample. A kind of data is one encoder: pixels here."""

import io
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from recipe.preparation.statistics import PixelSums

ENCODINGS = ("png", "webp", "raw")
COLUMNS = {"png": "png", "webp": "bytes", "raw": "ndarray:uint8"}


class Sums(Protocol):
    """Statistics of the samples of one chunk, which chunks merge in their order."""

    def add(self, images: NDArray[np.uint8], samples: list[dict[str, Any]]) -> None:
        """Count a batch in: pictures [N, C, H, W] and what became of them."""

    def note(self) -> dict[str, Any]:
        """All of it as JSON can hold it, without rounding."""
        ...

    def merge(self, note: dict[str, Any]) -> None:
        """Add what the `note` of the next chunk holds."""

    def facts(self) -> dict[str, Any]:
        """The entries of stats.json."""
        ...


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

    def encode(self, images: NDArray[np.uint8]) -> list[dict[str, Any]]:
        """One sample, without its label, for each of the pictures [N, C, H, W]."""
        ...

    def sums(self) -> Sums:
        """Statistics to which nothing has been added yet."""
        ...


class PixelEncoder:
    """Stores pictures without loss: png (small), webp (smaller, slower to write, no grey) or raw (fast, large)."""

    kind = "pixels"
    batch_size = 64

    def __init__(self, encoding: str, channels: int, resolution: int):
        self.encoding = encoding
        self.channels = channels
        self.columns = {"image": COLUMNS[encoding]}
        # Noise does not compress: row filters, tables and framing come on top of the pixels.
        self.sample_bytes = int(1.02 * channels * resolution**2) + 2 * resolution + 1024

    def encode(self, images: NDArray[np.uint8]) -> list[dict[str, Any]]:
        return [{"image": self._stored(image)} for image in images]

    def sums(self) -> PixelSums:
        return PixelSums(self.channels)

    def _stored(self, image: NDArray[np.uint8]) -> NDArray[np.uint8] | Image.Image | bytes:
        if self.encoding == "raw":
            return image
        picture = Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
        if self.encoding == "png":
            return picture
        file = io.BytesIO()
        picture.save(file, "WEBP", lossless=True, exact=True)
        return file.getvalue()
