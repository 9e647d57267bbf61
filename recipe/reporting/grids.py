"""The grids of samples that a run drew, by kind of weights and time, within a limit of bytes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from recipe.storage.places import Entry, Place

PNG = b"\x89PNG\r\n\x1a\n"
MOST_BYTES = 12 * 2**20  # of all grids in a page
_NAME = re.compile(r"samples/(?P<nimg>\d+)-(?P<kind>raw|ema-\d\.\d+)\.png")


@dataclass(frozen=True)
class Grid:
    """A picture of samples: when it was drawn, by which weights ("raw", "ema-0.100"), and its PNG."""

    nimg: int
    kind: str
    png: bytes


def read_grids(place: Place, most_bytes: int = MOST_BYTES) -> tuple[list[Grid], list[str]]:
    """The grids of the run in a place, by time, and remarks on what is left out. Raises StorageError.

    If all are more than `most_bytes`, equally spaced times are kept, the last one always, for all kinds of weights.
    """
    found: dict[int, list[tuple[str, Entry]]] = {}
    for entry in place.list("samples/"):
        if match := _NAME.fullmatch(entry.name):
            found.setdefault(int(match["nimg"]), []).append((match["kind"], entry))
    times = sorted(found)
    sizes = [sum(entry.size for _, entry in found[time]) for time in times]
    kept = _within(sizes, most_bytes)
    grids, broken = [], 0
    for time in (times[index] for index in kept):
        for kind, entry in found[time]:
            png = place.read(entry.name)
            if png.startswith(PNG):
                grids.append(Grid(time, kind, png))
            else:
                broken += 1
    remarks = []
    if len(kept) < len(times):
        limit = f"so that all grids stay within {most_bytes / 2**20:g} MiB"
        remarks.append(f"{len(kept)} of {len(times)} times are shown, {limit}")
    if broken:
        remarks.append(f"{broken} files in samples/ are no PNG, and left out")
    return grids, remarks


def _within(sizes: Sequence[int], most: int) -> list[int]:
    """Indices of as many equally spaced entries, the last one among them, as have at most `most` bytes together."""
    for count in range(len(sizes), 0, -1):
        last = len(sizes) - 1
        chosen = sorted({last - round(index * len(sizes) / count) for index in range(count)})
        if sum(sizes[index] for index in chosen) <= most:
            return chosen
    return []
