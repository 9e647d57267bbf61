"""How many images per second become shards, and how many bytes per image these take."""

import contextlib
import io
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from recipe.data.facts import DataFacts
from recipe.preparation.pipeline import prepare
from recipe.processors import processors

CASES: list[dict[str, Any]] = [
    {"resolution": 64, "encoding": "png"},
    {"resolution": 64, "encoding": "webp"},
    {"resolution": 64, "encoding": "raw"},
    {"resolution": 512, "encoding": "png"},
    {"resolution": 512, "encoding": "webp"},
    {"resolution": 512, "encoding": "raw"},
]
PHOTO = (500, 375)  # width and height, as most of ImageNet
QUALITY = 95  # of JPEG; files are then as large as ImageNet's on average, 110 kB
IMAGENET = 1_281_167  # images
SHARD_SIZE = {64: "1mb", 512: "16mb"}  # by resolution; small, so that no process runs out of work long before the end


def bench_preparation(source: str | None, images: int, folder: Path) -> None:
    """Print images per second and bytes per image for each of `CASES`, on one process and on one per processor.

    Args:
        source: what prepare.py reads; None = JPEG files cut from two photographs.
        images: number of these files.
        folder: for the files and the shards.
    """
    if source is None:
        source = str(folder / "photos")
        size = write_photos(Path(source), images)
        print(f"source             {images} JPEG files of {PHOTO[0]}x{PHOTO[1]}, {size / 1e3:.0f} kB each")
    most = processors()
    print(f"machine            {platform.processor() or platform.machine()}, {most} processors")
    quietly(source, folder / "first", resolution=64)  # not timed: the first call imports libraries for seconds
    for case in CASES:
        rates, size = [], 0.0
        for workers in sorted({1, most}):
            out = folder / f"{case['resolution']}-{case['encoding']}-{workers}"
            started = time.perf_counter()
            facts = quietly(source, out, workers=workers, shard_size=SHARD_SIZE[case["resolution"]], **case)
            made = facts.num_images or 0
            rates.append(f"{made / (time.perf_counter() - started):.0f} ({workers})")
            size = sum(path.stat().st_size for path in out.glob("shard.*")) / made
        name = f"{case['resolution']}x{case['resolution']} {case['encoding']}"
        sizes = f"{size / 1e3:.1f} kB an image, {size * IMAGENET / 1e9:.0f} GB for ImageNet"
        print(f"{name:<18} images/s (processes): {', '.join(rates)}; {sizes}")


def quietly(source: str, out: Path, **options: Any) -> DataFacts:
    """`prepare` with the paper's crop, without what it prints; returns the facts of the data set."""
    with contextlib.redirect_stdout(io.StringIO()):
        return prepare(source, out, crop="center-crop-dhariwal", **options)


def write_photos(folder: Path, count: int) -> float:
    """Write `count` JPEG files in 10 class folders, each a random part of one of scikit-learn's two photographs.

    scikit-learn comes with the extra `demo`.

    Returns:
        Their mean size in bytes.
    """
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images().images
    generator = np.random.default_rng(0)
    width, height = PHOTO
    total = 0
    for index in range(count):
        whole = photographs[index % len(photographs)]
        top, left = (
            generator.integers(0, have - want + 1) for have, want in zip(whole.shape[:2], (height, width), strict=True)
        )
        path = folder / f"{index % 10}" / f"{index:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(whole[top : top + height, left : left + width]).save(path, quality=QUALITY)
        total += path.stat().st_size
    return total / count
