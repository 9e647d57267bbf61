"""What a run's folder holds, and which files of it somebody asks for."""

import re
from collections.abc import Sequence

from recipe.command_line import UserError
from recipe.configuration.spans import images_in
from recipe.storage.places import Entry, Place
from recipe.weights.checkpoints import newest_whole
from recipe.weights.snapshots import SNAPSHOT_NAME

KINDS = {"snapshots": "snapshots/", "posthoc": "posthoc/", "config": "config.yaml"}
SNAPSHOT_FOLDERS = ("snapshots", "posthoc")
PRIVATE = ("owner.json", "progress.txt")  # of a run that is going on


class FetchError(UserError):
    """Something was asked for that the run does not hold; the message says what it does."""


def snapshot_fields(name: str) -> re.Match[str] | None:
    """What the name of a run's file says of a snapshot: `kind`, `nimg` and `sigma_rel`; None if it is none."""
    folder, _, file = name.partition("/")
    return SNAPSHOT_NAME.fullmatch(file) if folder in SNAPSHOT_FOLDERS else None


def choose(place: Place, entries: Sequence[Entry], what: str, sigma_rels: list[float] | None, nimg: str) -> list[Entry]:
    """The entries that the arguments ask for. Raises FetchError if there are none."""
    if what == "checkpoint":
        newest = newest_whole(place.child("checkpoints"))
        if newest is None:
            raise FetchError(f"{place.address}: holds no whole checkpoint; see what it holds with --list")
        names = {f"checkpoints/{entry.name}" for entry in newest.files}
        return [entry for entry in entries if entry.name in names]
    prefix = KINDS.get(what, "")
    chosen = [entry for entry in entries if entry.name.startswith(prefix) and entry.name not in PRIVATE]
    if sigma_rels is not None or nimg != "all":
        chosen = _chosen_snapshots(chosen, sigma_rels, nimg)
    if not chosen:
        raise FetchError(f"{place.address}: holds no such {what}; see what it holds with --list")
    return chosen


def _chosen_snapshots(entries: Sequence[Entry], sigma_rels: list[float] | None, nimg: str) -> list[Entry]:
    found = {entry: match for entry in entries if (match := snapshot_fields(entry.name))}
    times = {int(match["nimg"]) for match in found.values()}
    if nimg == "latest":
        times = {max(times, default=0)}
    elif nimg != "all":
        times = {images_in(nimg, "--nimg", ", or latest, or all")}
    return [
        entry
        for entry, match in found.items()
        if int(match["nimg"]) in times and (sigma_rels is None or float(match["sigma_rel"]) in sigma_rels)
    ]
