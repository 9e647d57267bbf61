"""Images between their files, the network and the eye."""

import torch
from torch import Tensor


def to_network(images: Tensor) -> Tensor:
    """Images as the network sees them, float32: uint8 pixels are scaled to [-1, 1]; floats are in its range already."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images.float()


def to_pixels(images: Tensor) -> Tensor:
    """The inverse of `to_network` for pixels: uint8 [N, C, H, W] from floats, clipped to [-1, 1] and rounded."""
    return (images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def image_grid(pixels: Tensor, columns: int) -> Tensor:
    """Lay out uint8 images [N, C, H, W] row by row as one image [H * rows, W * columns, C]; missing ones are black."""
    rows = -(-len(pixels) // columns)
    missing = rows * columns - len(pixels)
    if missing:
        pixels = torch.cat([pixels, torch.zeros_like(pixels[:1]).repeat(missing, 1, 1, 1)])
    _, c, h, w = pixels.shape
    return pixels.reshape(rows, columns, c, h, w).permute(0, 3, 1, 4, 2).reshape(rows * h, columns * w, c)
