"""The curves of a run from its TensorBoard files: all starts as one, what was trained twice once, in bounded memory.

The files are read record by record, and only numbers are kept: of each curve at most `MOST_POINTS` means over equally
many steps. Nothing in them is executed; what is no event ends the reading of its file.
"""

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto import event_pb2
from tensorboard.util import tensor_util

from recipe.storage.places import Place

MOST_POINTS = 1000  # of a curve
MOST_CURVES = 400
PIECE = 16 * 2**20  # bytes of an object that are fetched at once
_START: int = event_pb2.SessionLog.START  # pyright: ignore[reportAttributeAccessIssue]
HEAD = 3  # events at the begin of a file among which the step is that its start goes on from


@dataclass
class Curve:
    """Values by step; each point is the mean of the finite values of `stride` neighbouring logged ones.

    Attributes:
        steps: of the first value of each point, rising.
        means: NaN where no value was finite.
        stride: values in each point but the last.
    """

    steps: list[int] = field(default_factory=list)
    sums: list[float] = field(default_factory=list)
    finite: list[int] = field(default_factory=list)
    stride: int = 1
    in_last: int = 0

    @property
    def means(self) -> list[float]:
        return [total / count if count else math.nan for total, count in zip(self.sums, self.finite, strict=True)]

    def add(self, step: int, value: float) -> None:
        if not self.steps or self.in_last == self.stride:
            if len(self.steps) == MOST_POINTS:
                self._halve()
            if self.in_last == self.stride or not self.steps:
                self.steps.append(step)
                self.sums.append(0.0)
                self.finite.append(0)
                self.in_last = 0
        self.in_last += 1
        if math.isfinite(value):
            self.sums[-1] += value
            self.finite[-1] += 1

    def _halve(self) -> None:
        """Join neighbouring points, of which there is an even number, all full."""
        self.sums = [a + b for a, b in zip(self.sums[::2], self.sums[1::2], strict=True)]
        self.finite = [a + b for a, b in zip(self.finite[::2], self.finite[1::2], strict=True)]
        self.steps = self.steps[::2]
        self.stride *= 2
        self.in_last = self.stride


@dataclass(frozen=True)
class Start:
    """One event file: what one start of the run logged.

    Attributes:
        path: on this machine.
        time: Unix time of its first event.
        first_step: the step that it goes on from, which purges what was logged from there on; None = it says nothing.
    """

    path: Path
    time: float
    first_step: int | None


def read_curves(place: Place) -> tuple[dict[str, Curve], list[str]]:
    """The scalar curves of the run in a place by tag, and remarks on what is left out. Raises StorageError.

    All files are taken for starts of the one run whose folder it is, in whichever subfolder they lie.
    """
    names = [entry.name for entry in place.list("tensorboard/") if ".tfevents." in entry.name]
    curves: dict[str, Curve] = {}
    left: set[str] = set()
    remarks: list[str] = []
    with tempfile.TemporaryDirectory(prefix="edm2-report-") as folder:
        paths = [_local(place, name, Path(folder) / str(index)) for index, name in enumerate(names)]
        starts = sorted((_start(path) for path in paths), key=lambda start: start.time)
        last: dict[str, int] = {}
        for start, purged in zip(starts, _purged_from(starts), strict=True):
            for step, tag, value in _scalars(start.path):
                if (purged is not None and step >= purged) or step < last.get(tag, step):
                    continue  # trained again by a later start; or written out of order
                last[tag] = step
                if tag not in curves and len(curves) == MOST_CURVES:
                    left.add(tag)
                    continue
                curves.setdefault(tag, Curve()).add(step, value)
    if left:
        remarks.append(f"{len(left)} further curves are left out: only {MOST_CURVES} are shown")
    thinned = max((curve.stride for curve in curves.values()), default=1)
    if thinned > 1:
        remarks.append(f"long curves are thinned: a point is the mean of up to {thinned} logged values")
    if len(starts) > 1:
        remarks.append(f"{len(starts)} starts of the run are joined; steps that were trained again are shown once")
    return dict(sorted(curves.items())), remarks


def _local(place: Place, name: str, copy: Path) -> Path:
    """The file on this machine: itself, or a copy of an object, fetched piece by piece."""
    if place.is_local:
        return Path(place.address) / name
    size = place.size(name) or 0
    with open(copy, "wb") as file:
        for start in range(0, size, PIECE):
            file.write(place.read(name, start, min(PIECE, size - start)))
    return copy


def _purged_from(starts: Sequence[Start]) -> list[int | None]:
    """For each start the step from which on later ones trained again; None = nothing of it."""
    found: list[int | None] = []
    lowest: int | None = None
    for start in reversed(starts):
        found.append(lowest)
        if start.first_step is not None:
            lowest = start.first_step if lowest is None else min(lowest, start.first_step)
    return found[::-1]


def _start(path: Path) -> Start:
    time, first_step = math.inf, None
    for index, event in enumerate(_events(path)):
        time = min(time, event.wall_time)
        if event.HasField("session_log") and event.session_log.status == _START:
            first_step = int(event.step)
        if index + 1 == HEAD:
            break
    return Start(path, time, first_step)


def _events(path: Path) -> Iterator[Any]:
    """The events of a file, until it ends or is damaged, as a file that is being written may be at its end."""
    try:
        yield from LegacyEventFileLoader(str(path)).Load()
    except (DecodeError, MemoryError, OverflowError):
        return


def _scalars(path: Path) -> Iterator[tuple[int, str, float]]:
    """Step, tag and value of each logged number."""
    for event in _events(path):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                yield int(event.step), value.tag, float(value.simple_value)
            elif value.HasField("tensor") and value.metadata.plugin_data.plugin_name == "scalars":
                found = tensor_util.make_ndarray(value.tensor)
                if found.size == 1:
                    yield int(event.step), value.tag, float(found.item())
