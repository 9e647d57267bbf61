"""The whole of a preparation: source, chunks, workers, and one index at the end."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from recipe.preparation.chunks import Chunk, Job, Note
from recipe.preparation.first_look import job_of
from recipe.preparation.options import Settings
from recipe.preparation.outputs import Output, open_output
from recipe.preparation.sources.items import PreparationError, items_hash
from recipe.preparation.sources.opening import described, open_source
from recipe.preparation.sums import images_per_class
from recipe.preparation.workers import MOST_BROKEN, write_chunks
from recipe.ranks import Ranks, find_ranks


def prepare(
    source: str, out: str | Path, *, workers: int | None = None, overwrite: bool = False, **settings: Any
) -> dict[str, Any]:
    """Make the shards of `source` and their statistics at `out`, all or nothing; returns the statistics.

    Ranks other than the first of a launch get {}.

    Args:
        settings: fields of `Settings`: resolution, crop, channels, encoding, ...

    Raises:
        PreparationError, StorageError: as `prepare_data`.
    """
    return prepare_data(source, str(out), Settings(**settings), workers, overwrite)[0]


PLAN = "prepare/plan"  # what the first rank decides
OTHER = "holds other data, or other settings made it; name another folder, delete it, or give --overwrite"


def prepare_data(
    source: str, out: str, settings: Settings, workers: int | None = None, overwrite: bool = False
) -> tuple[dict[str, Any], bool]:
    """Make the shards and their statistics at `out`, all or nothing. Under a launcher, each rank makes its share.

    Args:
        source: see `sources.open_source`.
        out: a local folder or s3://bucket/prefix.
        workers: processes of each rank; None = as many as there are processors to use and the encoder has use for.
        overwrite: replace another data set that is there.

    Returns:
        The statistics, and whether there was anything to do. Ranks other than the first get no statistics.

    Raises:
        PreparationError: bad input, broken items, or another data set at `out`.
        StorageError: `out` cannot be used.
    """
    ranks = find_ranks()
    output = open_output(out, ranks.rank)
    there = output.existing() if ranks.first else None
    opened = open_source(source, settings.resolution, settings.labels, settings.split)
    for remark in opened.remarks if ranks.first else ():
        print(remark)
    job = job_of(settings, opened)
    about = {"source": described(source), "source_hash": items_hash(opened.items, "\n".join(opened.class_names or []))}
    if there is not None:
        if there.get("settings") == job.settings and there.get("source_hash") == about["source_hash"]:
            ranks.tell(PLAN, "nothing")
            return there, False
        if not overwrite:
            raise PreparationError(f"--out {out}: {OTHER}")
    if not ranks.first and ranks.hear(PLAN) == "nothing":
        return {}, False
    output.begin()
    try:
        if there is not None:
            output.discard()
        ranks.tell(PLAN, "write")
        processes = workers or min(ranks.processors(), job.encoder.most_processes())
        return _made(job, output, processes, about, ranks), True
    finally:
        output.end()


def _made(job: Job, output: Output, workers: int, about: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Write what is missing and complete the data set; returns its statistics."""
    chunks = job.chunks()
    notes = _write(job, ranks.share(chunks), output, workers, ranks)
    if not ranks.first:
        output.leave()
    ranks.gather()
    if not ranks.first:
        return {}
    if ranks.size > 1:
        notes = output.finished(chunks)
    index, facts, labels, skipped = merged([notes[chunk.number] for chunk in chunks], job, about)
    if not facts["num_images"]:
        reason = next(iter(skipped.values()))
        raise PreparationError(f"{about['source']}: every item was skipped; the first {reason}")
    output.finish(index, facts, labels, skipped)
    return facts


def _write(job: Job, chunks: Sequence[Chunk], output: Output, workers: int, ranks: Ranks) -> dict[int, Note]:
    """The notes of a rank's chunks, of which an interrupted run may have left some. The first rank tells of its own."""
    notes = output.finished(chunks, ranks.rank, ranks.size)
    missing = [chunk for chunk in chunks if chunk.number not in notes]
    total, left = (sum(chunk.stop - chunk.start for chunk in some) for some in (chunks, missing))
    among = "" if ranks.size == 1 else f" (rank 0 of {ranks.size})"
    if notes and ranks.first:
        print(f"{output.address}: goes on after {total - left} of {total} images{among}")
    start = time.monotonic()
    with tqdm(
        total=total, initial=total - left, unit="img", desc=f"prepare{among}", smoothing=0.05,
        disable=None if ranks.first else True,
    ) as bar:  # fmt: skip
        new, broken = write_chunks(job, missing, output, workers, bar.update)
    if broken:
        raise PreparationError(_listed(broken))
    if missing and ranks.first:
        seconds = time.monotonic() - start
        print(f"{left} images in {seconds:.1f} s, {left / max(seconds, 1e-9):.0f} images/s{among}")
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
) -> tuple[dict[str, Any], dict[str, Any], NDArray[np.int64], dict[str, str]]:
    """Index, statistics, label of each sample, and skipped items (reason by name) of all chunks, in their order."""
    sums = job.encoder.sums()
    for note in notes:
        sums.merge(note["sums"])
    skipped = {name: reason for note in notes for name, reason in note["skipped"]}
    index = {"version": 2, "shards": [entry for note in notes for entry in note["shards"]]}
    labels = np.array([label for note in notes for label in note["labels"]], np.int64)
    facts = {
        "kind": job.encoder.kind,
        "num_images": len(labels),
        **job.encoder.about(),
        "label_dim": job.source.label_dim(),
        "images_per_class": images_per_class(labels),
        "class_names": job.source.class_names,
        **(sums.facts() if len(labels) else {}),
        "num_skipped": sum(len(note["skipped"]) for note in notes),
        **about,
        "settings": job.settings,
    }
    return index, facts, labels, skipped
