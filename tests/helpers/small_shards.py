"""Small data sets as a user has them, and the digests of files, to see that nothing of his has changed."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from streaming import MDSWriter

SHARD = 1 << 10  # bytes, about


def write_shards(
    folder: Path,
    seed: int = 0,
    samples: int = 120,
    compression: str | None = None,
    hashes: tuple[str, ...] = ("sha1",),
    facts: dict[str, Any] | None = None,
) -> Path:
    """Shards of grey raw 8x8 images in 10 classes, drawn from `seed`, and the facts if some are given."""
    rng = np.random.default_rng(seed)
    columns = {"image": "ndarray:uint8:1,8,8", "label": "int"}
    with MDSWriter(
        out=str(folder), columns=columns, compression=compression, hashes=list(hashes), size_limit=SHARD
    ) as writer:
        for number in range(samples):
            image = rng.integers(0, 256, (1, 8, 8), dtype=np.uint8)
            writer.write({"image": image, "label": number % 10})
    if facts is not None:
        (folder / "stats.json").write_text(json.dumps(facts))
    return folder


def digests(*folders: Path) -> dict[str, str]:
    """The SHA-256 of each file below the folders; links are followed to files and folders."""
    found = {}
    for folder in folders:
        for parent, _, names in os.walk(folder, followlinks=True):
            for name in names:
                path = Path(parent, name)
                if path.is_file():
                    found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
