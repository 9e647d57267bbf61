"""The whole of a preparation: source, chunks, workers, and one index at the end."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recipe.command_line import say
from recipe.data.facts import DataFacts
from recipe.preparation.chunks import Chunk, Job, Note
from recipe.preparation.class_line import class_line
from recipe.preparation.first_look import job_of
from recipe.preparation.options import Settings
from recipe.preparation.outputs import Finished, Output, open_output
from recipe.preparation.sources.items import PreparationError, items_hash
from recipe.preparation.sources.opening import described, open_source
from recipe.preparation.sums import images_per_class
from recipe.preparation.workers import MOST_BROKEN, write_chunks
from recipe.progress import progress
from recipe.ranks import Ranks, find_ranks

PLAN = "prepare/plan"  # what the first rank decides
OTHER = "holds other data, or other settings made it; name another folder, delete it, or give --overwrite"


@dataclass(frozen=True)
class Origin:
    """What a data set is made from: a description of the source, and a digest of its list of items."""

    source: str
    source_hash: str


def prepare(
    source: str, out: str | Path, *, workers: int | None = None, overwrite: bool = False, **settings: Any
) -> DataFacts:
    """Make the shards of `source` and their stats.json at `out`, all or nothing; returns the facts of the data.

    Ranks other than the first of a launch get facts that say nothing.

    Args:
        settings: fields of `Settings`: resolution, crop, channels, encoding, ...

    Raises:
        PreparationError, StorageError: as `prepare_data`.
    """
    return prepare_data(source, str(out), Settings(**settings), workers, overwrite)[0] or DataFacts()


def prepare_data(
    source: str, out: str, settings: Settings, workers: int | None = None, overwrite: bool = False
) -> tuple[DataFacts | None, bool]:
    """Make the shards and their stats.json at `out`, all or nothing. Under a launcher, each rank makes its share.

    Args:
        source: see `sources.open_source`.
        out: a local folder or s3://bucket/prefix.
        workers: processes of each rank; None = as many as there are processors to use and the encoder has use for.
        overwrite: replace another data set that is there.

    Returns:
        The facts of the data, and whether there was anything to do. Ranks other than the first get no facts.

    Raises:
        PreparationError: bad input, broken items, or another data set at `out`.
        StorageError: `out` cannot be used.
    """
    ranks = find_ranks()
    output = open_output(out, ranks.rank)
    there = output.existing() if ranks.first else None
    opened = open_source(source, settings.resolution, settings.labels, settings.split)
    for remark in (*opened.remarks, class_line(opened)):
        say(remark)
    job = job_of(settings, opened)
    origin = Origin(described(source), items_hash(opened.items, "\n".join(opened.class_names or [])))
    if there is not None:
        if there.settings == job.settings and there.source_hash == origin.source_hash:
            ranks.tell(PLAN, "nothing")
            return there, False
        if not overwrite:
            raise PreparationError(f"--out {out}: {OTHER}")
        if output.is_source(source):
            raise PreparationError(f"--out {out}: is the source, which would be replaced; name another place")
    if not ranks.first and ranks.hear(PLAN) == "nothing":
        return None, False
    output.begin()
    try:
        if there is not None:
            output.discard()
        ranks.tell(PLAN, "write")
        processes = workers or min(ranks.processors(), job.encoder.most_processes())
        return _made(job, output, processes, origin, ranks), True
    finally:
        output.end()


def _made(job: Job, output: Output, workers: int, origin: Origin, ranks: Ranks) -> DataFacts | None:
    """Write what is missing and complete the data set; returns its facts, None on ranks other than the first."""
    chunks = job.chunks()
    notes = _write(job, ranks.share(chunks), output, workers, ranks)
    if not ranks.first:
        output.leave()
    ranks.gather()
    if not ranks.first:
        return None
    if ranks.size > 1:
        notes = output.finished(chunks)
    result = merged([notes[chunk.number] for chunk in chunks], job, origin)
    if not len(result.labels):
        reason = next(iter(result.skipped.values()))
        raise PreparationError(f"{origin.source}: every item was skipped; the first {reason}")
    output.finish(result)
    return result.facts


def _write(job: Job, chunks: Sequence[Chunk], output: Output, workers: int, ranks: Ranks) -> dict[int, Note]:
    """The notes of a rank's chunks, of which an interrupted run may have left some."""
    notes = output.finished(chunks, ranks.rank, ranks.size)
    missing = [chunk for chunk in chunks if chunk.number not in notes]
    total, left = (sum(chunk.stop - chunk.start for chunk in some) for some in (chunks, missing))
    done = total - left
    among = "" if ranks.size == 1 else f" (rank 0 of {ranks.size})"
    if notes:
        say(f"{output.address}: goes on after {done} of {total} images{among}")
    start = time.monotonic()
    with progress(total, f"prepare{among}", "img", shown=ranks.first, initial=done, smoothing=0.05) as bar:
        new, broken = write_chunks(job, missing, output, workers, bar.update)
    if broken:
        raise PreparationError(_listed(broken))
    if missing:
        seconds = time.monotonic() - start
        say(f"{left} images in {seconds:.1f} s, {left / max(seconds, 1e-9):.0f} images/s{among}")
    return notes | new


def _listed(broken: Sequence[tuple[str, str]]) -> str:
    many = f"{len(broken)} items" if len(broken) < MOST_BROKEN else f"{MOST_BROKEN} items or more"
    head = f"{many} cannot be used; repair or remove them, or leave them out with --skip-errors:"
    lines = [f"  {name}: {reason}" for name, reason in broken[:MOST_BROKEN]]
    return "\n".join([head, *lines, "The other work is kept: the same command goes on"])


def merged(notes: Sequence[Note], job: Job, origin: Origin) -> Finished:
    """The whole data set of all chunks, in their order."""
    sums = job.encoder.sums()
    for note in notes:
        sums.merge(note["sums"])
    skipped = [(name, reason) for note in notes for name, reason in note["skipped"]]
    labels = np.array([label for note in notes for label in note["labels"]], np.int64)
    entries = {
        "kind": job.encoder.kind,
        "num_images": len(labels),
        **job.encoder.about(),
        "label_dim": job.source.label_dim(),
        "images_per_class": images_per_class(labels),
        "class_names": job.source.class_names,
        **(sums.facts() if len(labels) else {}),
        "num_skipped": len(skipped),
        "source": origin.source,
        "source_hash": origin.source_hash,
        "settings": job.settings,
    }
    facts = DataFacts.from_json(entries, origin.source)  # which keeps their order in the file
    return Finished([entry for note in notes for entry in note["shards"]], facts, labels, dict(skipped))
