"""Pictures drawn by a network: classes, batches, files."""

import math
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from recipe.command_line import parse_integers
from recipe.edm2.images import to_pixels
from recipe.edm2.networks.precond import Precond
from recipe.edm2.samplers.generate import SamplerSettings, generate_batches
from recipe.sampling.networks import SampleError


def labels_for(seeds: Sequence[int], wanted: str | None, label_dim: int) -> list[int]:
    """The class of each seed: the seed-th of the wanted ones, cyclically; all classes if None; -1 = unconditional.

    Raises:
        SampleError: a class that the network does not know.
    """
    if label_dim == 0:
        if wanted is not None:
            raise SampleError(f"--labels {wanted}: the network is unconditional; leave --labels out")
        return [-1] * len(seeds)
    if wanted == "none":
        return [-1] * len(seeds)
    classes = list(range(label_dim)) if wanted is None else parse_integers(wanted)
    if max(classes) >= label_dim:
        raise SampleError(f"--labels {wanted}: the network knows the classes 0 to {label_dim - 1}")
    return [classes[seed % len(classes)] for seed in seeds]


def draw(
    net: Precond,
    seeds: Sequence[int],
    labels: Sequence[int],
    settings: SamplerSettings,
    batch_size: int,
    guide: Precond | None = None,
    pictures: Callable[[Tensor], Tensor] = to_pixels,
) -> Tensor:
    """uint8 images [N, C, H, W], one per seed, with a progress bar; `pictures` makes them of what the network makes."""
    batches = generate_batches(net, seeds, labels, settings, batch_size, guide)
    total = math.ceil(len(seeds) / batch_size)
    progress = tqdm(batches, total=total, desc="sample", unit="batch", disable=None)
    return torch.cat([pictures(batch) for batch in progress])


def as_image(pixels: Tensor, zoom: int = 1) -> Image.Image:
    """A Pillow image from uint8 [H, W, C] with 1 or 3 channels, each pixel a square of `zoom` x `zoom`."""
    image = Image.fromarray(pixels.squeeze(2).numpy())
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def write_images(pixels: Tensor, seeds: Sequence[int], out: Path) -> None:
    """One PNG per image, named by its seed."""
    out.mkdir(parents=True, exist_ok=True)
    for image, seed in zip(pixels, seeds, strict=True):
        save_image(as_image(image.permute(1, 2, 0)), out / f"{seed:06d}.png")


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image, whole or not at all, in the format that the path's extension names."""
    temporary = path.with_name(f".{secrets.token_hex(8)}{path.suffix}")
    try:
        image.save(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
