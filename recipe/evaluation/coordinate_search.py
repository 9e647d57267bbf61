"""The search for the best point along one coordinate after another, with far fewer measurements than a grid."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from recipe.evaluation.points import Axes, Point

ORDER = ("sigma_rel", "guidance", "interval", "guide_sigma_rel", "nimg")
"""In which coordinates are refined: those first that change most."""
Cost = Callable[[Sequence[Point]], Sequence[float]]
"""Gives a number for each point, the lower the better; NaN is worse than any."""


def coordinate_search(axes: Axes, start: Point, cost: Cost) -> Point:
    """The best point found from `start` on: moving any one coordinate to a neighbouring value does not improve it.

    Each coordinate is refined in turn, in that order: by steps of a quarter of its values at first, halved
    whenever neither side is better, down to a step of one value; in later rounds by single steps. It ends when a round
    moved nothing. Deterministic; equal costs do not move it. Points may be asked for more than once.

    Args:
        axes: the values that there are.
        start: a point with values of the axes.
        cost: measures points; those of one call are independent of each other.
    """
    best, coarse = start, True
    while True:
        before = best
        for coordinate in ORDER:
            best = _refine(axes, best, coordinate, cost, coarse)
        if best == before and not coarse:
            return best
        coarse = False


def _refine(axes: Axes, best: Point, coordinate: str, cost: Cost, coarse: bool) -> Point:
    values = axes.values(coordinate)
    if len(values) < 2 or getattr(best, coordinate) not in values:  # without guidance there is no guide's length
        return best
    step = max(1, len(values) // 4) if coarse else 1
    while step >= 1:
        index = values.index(getattr(best, coordinate))
        sides = [side for side in (index - step, index + step) if 0 <= side < len(values)]
        candidates = [best, *(_moved(axes, best, coordinate, values[side]) for side in sides)]
        costs = [math.inf if math.isnan(value) else value for value in cost(candidates)]
        winner = candidates[costs.index(min(costs))]  # the first of equal ones, so `best` itself
        if winner == best:
            step //= 2
        best = winner
    return best


def _moved(axes: Axes, point: Point, coordinate: str, value: Any) -> Point:
    """The point with another value of a coordinate. One that gets guidance gets the middle interval and guide, too."""
    changes = {coordinate: value}
    if point.guidance == 1 and coordinate == "guidance":
        changes |= {name: _middle(axes.values(name)) for name in ("interval", "guide_sigma_rel")}
    return axes.point(**vars(point) | changes)


def _middle(values: Sequence[Any]) -> Any:
    return values[len(values) // 2]
