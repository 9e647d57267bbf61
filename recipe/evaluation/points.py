"""The points of a sweep: which average of a run draws the pictures, and how it is guided."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipe.edm2.samplers.guidance import EVERYWHERE, Interval

COORDINATES = ("nimg", "sigma_rel", "guidance", "interval", "guide_sigma_rel")


@dataclass(frozen=True)
class Point:
    """One combination, whose pictures are measured.

    Attributes:
        nimg: images seen at the end of the average: the time of a snapshot.
        sigma_rel: length of the average, at most 3 decimals.
        guidance: its strength; 1 = none.
        interval: noise levels with guidance.
        guide_sigma_rel: length of the guide's average; None = the guide is a given one, or none.
    """

    nimg: int
    sigma_rel: float
    guidance: float = 1.0
    interval: Interval = EVERYWHERE
    guide_sigma_rel: float | None = None

    @property
    def name(self) -> str:
        """Names the point as no other."""
        parts = [f"{self.nimg:011d}", f"{self.sigma_rel:.3f}", f"w{self.guidance!r}"]
        if self.interval != EVERYWHERE:
            parts.append(f"from{self.interval.lo!r}to{self.interval.hi!r}")
        if self.guide_sigma_rel is not None:
            parts.append(f"guide{self.guide_sigma_rel:.3f}")
        return "-".join(parts)

    def to_json(self) -> dict[str, Any]:
        """The same in JSON, which has no infinity: null is an interval without an upper end."""
        lo, hi = self.interval
        return dataclasses.asdict(self) | {"interval": [lo, None if math.isinf(hi) else hi]}

    @staticmethod
    def from_json(tree: Mapping[str, Any]) -> "Point":
        """The point that `to_json` described. Raises ValueError, KeyError, TypeError for anything else."""
        lo, hi = tree["interval"]
        length = tree["guide_sigma_rel"]
        return Point(
            int(tree["nimg"]),
            float(tree["sigma_rel"]),
            float(tree["guidance"]),
            Interval(float(lo), math.inf if hi is None else float(hi)),
            None if length is None else float(length),
        )


@dataclass(frozen=True)
class Axes:
    """The values of each coordinate that a sweep goes through.

    Attributes:
        nimg, sigma_rel, guidance, guide_sigma_rel: rising.
        interval: in the order in which they were given.
    """

    nimg: Sequence[int]
    sigma_rel: Sequence[float]
    guidance: Sequence[float] = (1.0,)
    interval: Sequence[Interval] = (EVERYWHERE,)
    guide_sigma_rel: Sequence[float | None] = (None,)

    def values(self, coordinate: str) -> Sequence[Any]:
        """The values of one of COORDINATES."""
        return getattr(self, coordinate)

    def strongest(self) -> float:
        """The guidance that is furthest from none."""
        return max(self.guidance, key=lambda strength: abs(strength - 1))

    def point(self, **values: Any) -> Point:
        """A point; without guidance it has neither interval nor guide, which then change nothing."""
        point = Point(**values)
        return Point(point.nimg, point.sigma_rel) if point.guidance == 1 else point

    def grid(self) -> list[Point]:
        """All combinations, each once, by time and then length, so that one pass over snapshots makes many."""
        products = itertools.product(*(self.values(name) for name in COORDINATES))
        return list(dict.fromkeys(self.point(**dict(zip(COORDINATES, each, strict=True))) for each in products))

    def middle(self) -> Point:
        """The last snapshot with the middle value of each other coordinate: where a search begins."""
        chosen = {name: self.values(name)[len(self.values(name)) // 2] for name in COORDINATES}
        return self.point(**chosen | {"nimg": self.nimg[-1]})


def shown(coordinate: str, value: Any) -> str:
    """A value as tables and figures say it."""
    if isinstance(value, tuple):
        lo, hi = value
        return "all" if value == EVERYWHERE else f"({lo:g}, {hi:g}]"
    if value is None:
        return "-"
    return f"{value:.3f}" if coordinate.endswith("sigma_rel") else f"{value:g}" if coordinate != "nimg" else str(value)
