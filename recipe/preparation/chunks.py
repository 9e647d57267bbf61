"""The list of items in fixed chunks: one chunk is one shard, whoever writes it and whenever."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipe.preparation.decoding import read_item
from recipe.preparation.encoders import Encoder
from recipe.preparation.sources.items import ItemError, Raw, Source, items_hash, shown

LARGEST_CHUNK = 8192  # items, so that little is done twice after an interruption
LABEL_BYTES = 64  # of a sample beside its image: label, sizes, offset

Note = dict[str, Any]
"""A finished chunk: its key, index entries, sums, labels and skipped items, as JSON."""


@dataclass(frozen=True)
class Chunk:
    """Items `start` to `stop` - 1; `key` is a hash of all that decides what is written for them."""

    number: int
    start: int
    stop: int
    key: str


class BrokenItems(ValueError):
    """Items of a chunk that cannot be used, as (name, reason); nothing was written for it."""

    def __init__(self, items: list[tuple[str, str]]):
        super().__init__(items)
        self.items = items


@dataclass(frozen=True)
class Job:
    """What all chunks have in common.

    Attributes:
        picture_format: makes of an item the array that is encoded; raises ItemError.
        shard_size: bytes that a shard may have before compression.
        compression, hashes: as MDSWriter takes them.
        skip_errors: leave broken items out instead of raising BrokenItems.
    """

    source: Source
    picture_format: Callable[[Raw], NDArray[Any]]
    encoder: Encoder
    settings: dict[str, Any]
    shard_size: int
    compression: str | None
    hashes: tuple[str, ...]
    skip_errors: bool

    def chunks(self) -> list[Chunk]:
        """The items in chunks whose shards cannot become larger than `shard_size`."""
        items = self.source.items
        length = max(1, min(LARGEST_CHUNK, self.shard_size // (self.encoder.sample_bytes + LABEL_BYTES)))
        # The whitening is only noted beside the shards: with another one, what is encoded already stays of use.
        start = json.dumps({key: self.settings[key] for key in self.settings if key != "whitening"}, sort_keys=True)
        return [
            Chunk(number, first, min(first + length, len(items)), items_hash(items[first : first + length], start))
            for number, first in enumerate(range(0, len(items), length))
        ]


def write_chunk(job: Job, chunk: Chunk, folder: Path, done: Callable[[int], object]) -> Note:
    """Write the shard of a chunk into `folder`, under its final name, and return what is to be noted of it.

    Args:
        folder: is emptied first.
        done: is called with the number of items each time some are finished.

    Raises:
        BrokenItems: unless `job.skip_errors`; all of the chunk's.
        OSError: the disk.
    """
    from streaming import MDSWriter  # it takes seconds to import

    shutil.rmtree(folder, ignore_errors=True)
    broken: list[tuple[str, str]] = []
    labels: list[int] = []
    sums = job.encoder.sums()
    columns = job.encoder.columns | {"label": "int"}
    with MDSWriter(
        out=str(folder),
        columns=columns,
        compression=job.compression,
        hashes=list(job.hashes),
        size_limit=job.shard_size,
        progress_bar=False,
    ) as writer:
        for indices, images in _batches(job, chunk, broken, done):
            samples = job.encoder.encode(images)
            sums.add(images, samples)
            for index, sample in zip(indices, samples, strict=True):
                label = job.source.items[index].label
                labels.append(label)
                writer.write(sample | {"label": label})
    if broken and not job.skip_errors:
        raise BrokenItems(broken)
    return {
        "key": chunk.key,
        "samples": len(labels),
        "shards": _named(folder, writer.shards, chunk.number),
        "labels": labels,
        "sums": sums.note(),
        "skipped": broken,
    }


def _batches(
    job: Job, chunk: Chunk, broken: list[tuple[str, str]], done: Callable[[int], object]
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Indices and pictures [N, C, H, W] of the chunk; once an item is broken and not to be skipped, only looks on."""
    indices: list[int] = []
    images: list[np.ndarray] = []
    for index in range(chunk.start, chunk.stop):
        try:
            image = job.picture_format(read_item(job.source, index))
            if job.skip_errors or not broken:
                indices.append(index)
                images.append(image)
        except ItemError as error:
            broken.append((shown(job.source.items[index].name), str(error)))
        done(1)
        if len(images) == job.encoder.batch_size:
            yield indices, np.stack(images)
            indices, images = [], []
    if images:
        yield indices, np.stack(images)


def _named(folder: Path, entries: list[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    """Index entries with names that count chunks; their files are renamed. There is one, unless estimates failed."""
    for part, entry in enumerate(entries):
        for kind in ("raw_data", "zip_data"):
            if entry.get(kind):
                old = entry[kind]["basename"]
                new = f"shard.{number:05}{f'-{part}' if part else ''}{old.removeprefix(f'shard.{part:05}')}"
                if (folder / old).exists():
                    (folder / old).rename(folder / f"{new}.whole")
                entry[kind]["basename"] = new
    for path in folder.glob("*.whole"):
        path.rename(path.with_suffix(""))
    return entries
