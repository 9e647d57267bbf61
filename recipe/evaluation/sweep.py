"""Sweeps: measures points, and keeps each result as a file of its own, so that a sweep goes on where it stopped.

    sweep = Sweep(Results(open_place("s3://bucket/sweep"), settings), measure)
    results = sweep(Axes([51200], [0.05, 0.10, 0.15]).grid())

Several processes share a place if each measures other points (`share`): no file then has two writers.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from recipe.command_line import UserError
from recipe.evaluation.points import Point
from recipe.progress import progress
from recipe.ranks import Ranks
from recipe.sampling.settings import differences
from recipe.storage.places import Place, StorageError

FORMAT = "edm2-recipe sweep 1"
SETTINGS = "sweep.json"
POINTS = "points"
TABLE = "table.csv"
FIGURES = ("sigma_rel", "guidance", "training", "profiles")  # each as PNG and SVG
WRITTEN = (TABLE, *(f"{name}{suffix}" for name in FIGURES for suffix in (".png", ".svg")))
"""What a sweep leaves beside its results, again and again."""
SWEEPS = "sweeps"  # folder of a run in which its sweeps are looked for
Values = Mapping[str, float]
"""Metrics by name."""
T = TypeVar("T")


class SweepError(UserError):
    """A sweep that cannot be made or go on as asked; the message says why."""


@dataclass(frozen=True)
class Result:
    """What was measured at a point, and in how many seconds."""

    point: Point
    values: Values
    seconds: float = 0.0


def share(points: Sequence[T], task: int, tasks: int) -> list[T]:
    """The points of one of several tasks, fixed whatever is measured already: every `tasks`-th, from `task` on."""
    return list(points[task::tasks])


class Results:
    """The results in a place, all of the same settings: `sweep.json`, and `points/NAME.json` for each point.

    Args:
        place: local or s3://.
        settings: all that the values depend on beside the point.
    """

    def __init__(self, place: Place, settings: Mapping[str, str]):
        self.place = place
        self.settings = dict(settings)

    def begin(self) -> None:
        """Note the settings, or see that they are those noted.

        Raises:
            SweepError: a sweep of other settings, or files of somebody else where its table and figures are to go.
            StorageError: the place cannot be used.
        """
        text = json.dumps({FORMAT: self.settings}, indent=2) + "\n"
        if self.place.size(SETTINGS) is None:
            foreign = [name for name in WRITTEN if self.place.size(name) is not None]
            if foreign:
                raise SweepError(
                    f"{self.place.describe(foreign[0])}: is there, and is not of a sweep; name another --out"
                )
        if self.place.write_new(SETTINGS, text.encode()):
            return
        there = read_settings(self.place)
        if there != self.settings:
            raise SweepError(
                f"{self.place.describe()}: holds a sweep of other settings ({differences(there, self.settings)}); "
                "name another --out"
            )

    def find(self, point: Point) -> Result | None:
        """The result of a point that was measured. Raises SweepError for one of other settings, StorageError."""
        name = f"{POINTS}/{point.name}.json"
        if self.place.size(name) is None:
            return None
        result = self._read(name)
        if result.point != point:
            raise SweepError(f"{self.place.describe(name)}: holds the result of another point; delete the file")
        return result

    def store(self, result: Result) -> None:
        """Keep a result, whole or not at all. Raises StorageError."""
        tree = {
            "point": result.point.to_json(),
            "values": {name: value if math.isfinite(value) else None for name, value in result.values.items()},
            "seconds": round(result.seconds, 3),
            "settings": self.settings,
        }
        name = f"{POINTS}/{result.point.name}.json"
        self.place.write(name, (json.dumps({FORMAT: tree}, indent=2) + "\n").encode())

    def all(self) -> list[Result]:
        """All results that are there, by point. Raises SweepError, StorageError."""
        names = [entry.name for entry in self.place.list(f"{POINTS}/") if entry.name.endswith(".json")]
        return [self._read(name) for name in sorted(names)]

    def _read(self, name: str) -> Result:
        where = self.place.describe(name)
        try:
            tree: dict[str, Any] = json.loads(self.place.read(name))[FORMAT]
            values = {str(key): math.nan if value is None else float(value) for key, value in tree["values"].items()}
            result = Result(Point.from_json(tree["point"]), values, float(tree["seconds"]))
            settings = dict(tree["settings"])
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            raise SweepError(f"{where}: is no result of a sweep; move it away, or name another --out") from None
        if settings != self.settings:
            raise SweepError(
                f"{where}: was measured with other settings ({differences(settings, self.settings)}); name another "
                "--out"
            )
        return result


def read_settings(place: Place) -> dict[str, str]:
    """The settings of the sweep in a place. Raises SweepError if there is none, StorageError."""
    try:
        found = json.loads(place.read(SETTINGS))[FORMAT]
        return {str(name): str(value) for name, value in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, StorageError):
            raise
        raise SweepError(f"{place.describe(SETTINGS)}: is not of a sweep; name another --out") from None


def read_results(place: Place) -> list[Result]:
    """All results of the sweep in a place, of whatever settings. Raises SweepError, StorageError."""
    return Results(place, read_settings(place)).all()


@dataclass
class Sweep:
    """Measures points that have no result yet; all ranks of a launch call it with the same points.

    Attributes:
        results: what is there, and where new ones go.
        measure: gives the values of a point, the same on every rank.
        expect: is told the points that `measure` is about to be asked for, in order.
        ranks: rank 0 reads and writes results, and tells the others.
    """

    results: Results
    measure: Callable[[Point], Values]
    expect: Callable[[Sequence[Point]], object] = lambda points: None
    ranks: Ranks = field(default_factory=Ranks)
    known: dict[Point, Result] = field(default_factory=dict)

    def __call__(self, points: Sequence[Point]) -> list[Result]:
        """The results of the points, in order. Raises SweepError, StorageError, and what `measure` does."""
        self._look(points)
        missing = [point for point in dict.fromkeys(points) if point not in self.known]
        self.expect(missing)
        with progress(len(missing), "sweep", "point", shown=self.ranks.first, leave=False) as bar:
            for point in missing:
                started = time.monotonic()
                values = self.measure(point)
                result = Result(point, values, time.monotonic() - started)
                if self.ranks.first:
                    self.results.store(result)
                self.known[point] = result
                bar.update()
        return [self.known[point] for point in points]

    def _look(self, points: Sequence[Point]) -> None:
        """Learn what is there already: from the place on rank 0, from rank 0 on the others."""
        unknown = [point for point in dict.fromkeys(points) if point not in self.known]
        found = [self.results.find(point) for point in unknown] if self.ranks.first else []
        there = [None if result is None else [dict(result.values), result.seconds] for result in found]
        there = json.loads(self.ranks.announce(json.dumps(there)))
        for point, each in zip(unknown, there, strict=True):
            if each is not None:
                self.known[point] = Result(point, each[0], each[1])
