"""How many images per second one worker of the training loader reads, and how long augmentation takes per image."""

import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from streaming import MDSWriter

from recipe.configuration.reader import read_config
from recipe.configuration.schema import Config
from recipe.data.checks import check_data, resolve
from recipe.data.loader import training_loader
from recipe.edm2.augment import Augmentation, augment
from recipe.preparation.encoders import PixelEncoder

REPEATS = 5
SYNTHETIC = {  # columns of the synthetic shards, by what they hold
    "png": {"image": "png", "label": "int"},
    "webp": {"image": "bytes", "label": "int"},
    "raw": {"image": "ndarray:uint8", "label": "int"},
    "latents float32": {"mean": "ndarray:float32", "std": "ndarray:float32", "label": "int"},
    "latents float16": {"mean": "ndarray:float16", "std": "ndarray:float16", "label": "int"},
}


def bench_data(given: Config | None, folder: Path, images: int, resolution: int) -> None:
    """Print the images per second and worker that the loader reads, and the milliseconds per image of augmentation.

    Args:
        given: configuration that names the data; None = synthetic data sets of each kind, written below `folder`.
        folder: for the synthetic data sets.
        images: how many each of them holds, at least 256.
        resolution: of their images, and of those that are augmented.
    """
    print(f"machine            {platform.processor() or platform.machine()}, torch {torch.__version__}")
    for name, config in ({"data": given} if given else synthetic(folder, images, resolution)).items():
        print(f"read: {name:<32} {summary(read_rates(config))} images/s and worker")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for p in (0.12, 1.0):
        print(f"augment: p = {p:<27} {summary(augment_costs(p, resolution, device))} ms an image on {device}")


def synthetic(folder: Path, images: int, resolution: int) -> dict[str, Config]:
    """Write a synthetic data set of each kind below `folder`; returns a configuration for each, by its description."""
    configurations = {}
    empty = folder / "defaults.yaml"
    empty.write_text("samples: {interval: null}\n")
    for kind, columns in SYNTHETIC.items():
        path = folder / kind.replace(" ", "-")
        write_synthetic(path, kind, images, resolution)
        size = sum(file.stat().st_size for file in path.glob("*.mds")) / images / 1e3
        shape = [f"model.img_resolution={resolution}", f"model.img_channels={4 if 'mean' in columns else 3}"]
        given = ["run_name=bench", f"data.local={path}", "data.num_workers=1", "global_batch_size=256", *shape]
        configurations[f"{kind}, {size:.1f} kB an image"] = read_config([str(empty), *given])
    return configurations


def write_synthetic(folder: Path, kind: str, images: int, resolution: int) -> None:
    """Write shards of random moments, or of random pictures that compress like photographs: smooth, with some noise."""
    generator, columns = np.random.default_rng(0), SYNTHETIC[kind]
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for index in range(images):
            if "mean" in columns:
                shape, dtype = (4, resolution, resolution), columns["mean"].split(":")[1]
                arrays: dict[str, Any] = {name: generator.normal(size=shape).astype(dtype) for name in ("mean", "std")}
            else:
                patches = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                smooth = np.asarray(patches.resize((resolution, resolution), Image.Resampling.BICUBIC), dtype=np.int16)
                noisy = (smooth + generator.integers(-4, 5, smooth.shape)).clip(0, 255).astype(np.uint8)
                (arrays,) = PixelEncoder(kind, 3, resolution).encode(noisy.transpose(2, 0, 1)[None])
            writer.write(arrays | {"label": index % 1000})


def read_rates(config: Config) -> list[float]:
    """Images per second and worker of the training loader, one number per epoch; starting the workers is not timed."""
    rates, batch = [], config.global_batch_size
    data = check_data(config)
    loader = training_loader(resolve(config, data.facts), data, batch)
    for _ in range(REPEATS):
        batches: Iterator[Any] = iter(loader)
        first = 4  # batches that the worker prepares before the first one is asked for: not timed
        for _ in range(first):
            next(batches)
        started = time.perf_counter()
        count = sum(1 for _ in batches)
        rates.append(count * batch / (time.perf_counter() - started) / max(config.data.num_workers, 1))
    return rates


def augment_costs(p: float, resolution: int, device: str) -> list[float]:
    """Milliseconds per RGB image, a number per batch of 64, of augmentation with probability `p` of each transform."""
    images, ids = torch.randn(64, 3, resolution, resolution, device=device), torch.arange(64, device=device)
    synchronize: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    costs = []
    for batch in range(2 * REPEATS):
        synchronize()
        started = time.perf_counter()
        augment(images, ids, Augmentation(p, 1e8, 1, 1, 1, 1, 1), 0, batch)
        synchronize()
        costs.append((time.perf_counter() - started) / len(images) * 1e3)
    return costs[REPEATS:]


def summary(values: list[float]) -> str:
    """Median and range of `values` as text."""
    digits = 0 if min(values) > 100 else 2
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
