"""The whole of a preparation: source, chunks, workers, and one index at the end."""

import os
import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from recipe.preparation.chunks import Chunk, Job, Note
from recipe.preparation.items import PreparationError, items_hash
from recipe.preparation.outputs import Output, open_output
from recipe.preparation.settings import Settings
from recipe.preparation.sources import described, open_source
from recipe.preparation.statistics import images_per_class
from recipe.preparation.workers import MOST_BROKEN, write_chunks

OTHER = "holds other data, or other settings made it; name another folder, delete it, or give --overwrite"


def prepare_data(
    source: str, out: str, settings: Settings, workers: int | None = None, overwrite: bool = False
) -> tuple[dict[str, Any], bool]:
    """Make the shards and their statistics at `out`, all or nothing.

    Args:
        source: see `sources.open_source`.
        out: a local folder or s3://bucket/prefix.
        workers: processes; None = as many as there are processors to use.
        overwrite: replace another data set that is there.

    Returns:
        The statistics, and whether there was anything to do.

    Raises:
        PreparationError: bad input, broken items, or another data set at `out`.
        StorageError: `out` cannot be used.
    """
    output = open_output(out)
    there = output.existing()
    opened = open_source(source, settings)
    for remark in opened.remarks:
        print(remark)
    job = settings.job(opened)
    source_hash = items_hash(opened.items, "\n".join(opened.class_names or []))
    if there is not None:
        if there.get("settings") == job.settings and there.get("source_hash") == source_hash:
            return there, False
        if not overwrite:
            raise PreparationError(f"--out {out}: {OTHER}")
    about = {"source": described(source), "source_hash": source_hash}
    output.begin()
    try:
        if there is not None:
            output.discard()
        return _made(job, output, workers or len(os.sched_getaffinity(0)), about), True
    finally:
        output.end()


def _made(job: Job, output: Output, workers: int, about: dict[str, Any]) -> dict[str, Any]:
    """Write what is missing and complete the data set; returns its statistics."""
    chunks = job.chunks()
    notes = _write(job, chunks, output, workers)
    index, facts, skipped = merged([notes[chunk.number] for chunk in chunks], job, about)
    if not facts["num_images"]:
        reason = next(iter(skipped.values()))
        raise PreparationError(f"{about['source']}: every item was skipped; the first {reason}")
    output.finish(index, facts, skipped)
    return facts


def _write(job: Job, chunks: Sequence[Chunk], output: Output, workers: int) -> dict[int, Note]:
    """The notes of all chunks, of which an interrupted run may have left some."""
    notes = output.finished(chunks)
    missing = [chunk for chunk in chunks if chunk.number not in notes]
    total = len(job.source.items)
    left = sum(chunk.stop - chunk.start for chunk in missing)
    if notes:
        print(f"{output.address}: goes on after {total - left} of {total} images")
    start = time.monotonic()
    with tqdm(total=total, initial=total - left, unit="img", desc="prepare", disable=None, smoothing=0.05) as bar:
        new, broken = write_chunks(job, missing, output, workers, bar.update)
    if broken:
        raise PreparationError(_listed(broken))
    if missing:
        seconds = time.monotonic() - start
        print(f"{left} images in {seconds:.1f} s, {left / max(seconds, 1e-9):.0f} images/s")
    return notes | new


def _listed(broken: Sequence[tuple[str, str]]) -> str:
    lines = [f"  {name}: {reason}" for name, reason in broken[:MOST_BROKEN]]
    many = f"{len(broken)} items" if len(broken) < MOST_BROKEN else f"{MOST_BROKEN} items or more"
    return "\n".join(
        [f"{many} cannot be used; mend or remove them, or leave them out with --skip-errors:", *lines,
         "The other work is kept: the same command goes on"]
    )  # fmt: skip


def merged(
    notes: Sequence[Note], job: Job, about: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """Index, statistics and skipped items (reason by name) of all chunks, in their order."""
    sums = job.encoder.sums()
    for note in notes:
        sums.merge(note["sums"])
    skipped = {name: reason for note in notes for name, reason in note["skipped"]}
    index = {"version": 2, "shards": [entry for note in notes for entry in note["shards"]]}
    count = sum(note["samples"] for note in notes)
    facts = {
        "kind": job.encoder.kind,
        "num_images": count,
        "img_resolution": job.picture_format.resolution,
        "img_channels": job.picture_format.channels,
        "label_dim": job.source.label_dim(),
        "images_per_class": images_per_class([note["labels"] for note in notes]),
        "class_names": job.source.class_names,
        **(sums.facts() if count else {}),
        "num_skipped": sum(len(note["skipped"]) for note in notes),
        **about,
        "encoding": job.settings["encoding"],
        "settings": job.settings,
    }
    return index, facts, skipped
