"""Which checkpoints a run holds, which of them are whole, and which may go.

Composer writes a run without sharding as one file `ba{batch}-rank0.pt`, and a sharded run as a folder
`ep{epoch}-ba{batch}` with a part per rank and `.metadata`, which says what each part must hold. A kill can cut either
short, and parts of a sharded checkpoint reach object storage one by one, in any order.
"""

import logging
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from recipe.storage.places import Entry, Place
from recipe.weights.pickles import METADATA, parse_metadata

log = logging.getLogger(__name__)
_PARTS = r"/(__\d+_\d+\.distcp|\.metadata(\.tmp)?)"  # as torch names them; what else lies there is not its own
_NAME = re.compile(rf"(?P<name>ba(?P<single>\d+)-rank0\.pt|ep\d+-ba(?P<sharded>\d+)(?=/))({_PARTS})?")


@dataclass(frozen=True, order=True)
class Checkpoint:
    """A checkpoint as a listing shows it.

    Attributes:
        batch: steps taken.
        name: of the file or folder, relative to the place that was listed.
        files: what it consists of.
    """

    batch: int
    name: str
    files: tuple[Entry, ...]

    @property
    def sharded(self) -> bool:
        return not self.name.endswith(".pt")

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(entry.size for entry in self.files)


def list_checkpoints(place: Place) -> list[Checkpoint]:
    """All checkpoints in a run's checkpoints folder, by batch, whole or not; other files are not listed."""
    found: dict[tuple[int, str], list[Entry]] = {}
    for entry in place.list():
        if match := _NAME.fullmatch(entry.name):
            found.setdefault((int(match["single"] or match["sharded"]), match["name"]), []).append(entry)
    return [Checkpoint(batch, name, tuple(files)) for (batch, name), files in sorted(found.items())]


def is_whole(place: Place, checkpoint: Checkpoint) -> bool:
    """Whether nothing of it is missing or cut short.

    Raises:
        UntrustedPickle: a `.metadata` that names foreign code.
    """
    if not checkpoint.sharded:
        # Objects appear whole. Of a local file torch writes the zip's directory last.
        return not place.is_local or zipfile.is_zipfile(Path(place.address) / checkpoint.name)
    name = f"{checkpoint.name}/{METADATA}"
    sizes = {entry.name: entry.size for entry in checkpoint.files}
    if name not in sizes:
        return False
    metadata = parse_metadata(place.read(name), place.describe(name))
    needed: dict[str, int] = {}
    for part in metadata.storage_data.values():  # pyright: ignore[reportOptionalMemberAccess]
        path = str(PurePosixPath(checkpoint.name, part.relative_path))
        needed[path] = max(needed.get(path, 0), part.offset + part.length)
    return all(sizes.get(path, -1) >= size for path, size in needed.items())


def newest_whole(place: Place) -> Checkpoint | None:
    """The newest whole checkpoint, None if there is none."""
    for checkpoint in reversed(list_checkpoints(place)):
        if is_whole(place, checkpoint):
            return checkpoint
        log.warning("%s: is incomplete, cut short by a kill; passing it over", place.describe(checkpoint.name))
    return None


def remove(place: Place, checkpoint: Checkpoint) -> None:
    """Delete a checkpoint, first of all what makes it count as whole."""
    names = sorted((entry.name for entry in checkpoint.files), key=lambda name: not name.endswith(METADATA))
    place.delete(names[:1])
    place.delete(names[1:])


def clean_up(place: Place) -> Checkpoint | None:
    """Delete what kills left in a run's checkpoints folder; returns the newest whole checkpoint, None if there is none.

    Call it before anyone writes there: a checkpoint that is still being written looks the same.
    """
    whole = None
    for checkpoint in list_checkpoints(place):
        if is_whole(place, checkpoint):
            whole = checkpoint
        else:
            log.warning("deleting %s: it was cut short", place.describe(checkpoint.name))
            remove(place, checkpoint)
    return whole


def retain(place: Place, keep: int) -> Checkpoint | None:
    """Delete all but the `keep` newest whole checkpoints and what is newer, -1 = nothing; returns the newest whole."""
    assert keep == -1 or keep >= 1, keep  # 0 would leave nothing to resume from
    whole: list[Checkpoint] = []
    for checkpoint in reversed(list_checkpoints(place)):
        if 0 <= keep <= len(whole):
            remove(place, checkpoint)
        elif is_whole(place, checkpoint):
            whole.append(checkpoint)
            if keep < 0:
                break
    return whole[0] if whole else None
