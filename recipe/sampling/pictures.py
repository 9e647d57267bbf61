"""Pictures for the eye: Pillow images of pixels, and grids of what was drawn."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from recipe.edm2.images import image_grid
from recipe.storage.own_pictures import save_picture


def as_image(pixels: Tensor, zoom: int = 1) -> Image.Image:
    """A Pillow image from uint8 [H, W, C] with 1 or 3 channels, each pixel a square of `zoom` x `zoom`."""
    image = Image.fromarray(pixels.squeeze(2).numpy())
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def as_pixels(png: bytes) -> Tensor:
    """uint8 [C, H, W] of a PNG that `as_image` was written to."""
    with Image.open(io.BytesIO(png)) as image:
        array = np.array(image)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)


def write_grid(pngs: Sequence[bytes], address: str, columns: int, zoom: int) -> None:
    """Write pictures as one, local or in object storage, in the format of its suffix, whole or not at all."""
    sheet = image_grid(torch.stack([as_pixels(png) for png in pngs]), columns)
    save_picture(as_image(sheet, zoom), address)
