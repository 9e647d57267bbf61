"""Coordinate search: it ends where no neighbour is better, with few measurements, always the same way."""

import math
from collections.abc import Callable, Sequence

import pytest

from recipe.edm2.samplers.guidance import EVERYWHERE, Interval
from recipe.evaluation.coordinate_search import coordinate_search
from recipe.evaluation.points import Axes, Point

LENGTHS = [round(0.01 + 0.005 * index, 3) for index in range(49)]
STRENGTHS = [round(1 + 0.1 * index, 1) for index in range(31)]
AXES = Axes([1000, 2000, 4000], LENGTHS, STRENGTHS, [EVERYWHERE, Interval(0.2, 3.0), Interval(0.5, 5.0)])


class Costs:
    """A function of points that counts how many it was asked for."""

    def __init__(self, function: Callable[[Point], float]):
        self.function = function
        self.asked: dict[Point, float] = {}

    def __call__(self, points: Sequence[Point]) -> list[float]:
        self.asked |= {point: self.function(point) for point in points}
        return [self.asked[point] for point in points]


def valley(point: Point) -> float:
    """Lowest at 0.075 and 2.1; the best length falls with guidance, as in practice."""
    length = 0.075 - 0.01 * (point.guidance - 2.1)
    penalty = {EVERYWHERE: 0.3, Interval(0.2, 3.0): 0.0, Interval(0.5, 5.0): 0.5}[point.interval]
    return 1e3 * (point.sigma_rel - length) ** 2 + (point.guidance - 2.1) ** 2 + penalty - point.nimg / 1e4


def test_it_finds_the_optimum_with_few_points():
    costs, grid = Costs(valley), AXES.grid()
    best = coordinate_search(AXES, AXES.middle(), costs)
    assert valley(best) == min(map(valley, grid))
    assert (best.sigma_rel, best.guidance, best.nimg) == (0.075, 2.1, 4000) and best.interval == Interval(0.2, 3.0)
    assert len(costs.asked) < len(grid) / 100, len(costs.asked)


def test_it_is_deterministic():
    runs = [Costs(valley) for _ in range(2)]
    assert len({coordinate_search(AXES, AXES.middle(), costs) for costs in runs}) == 1
    assert list(runs[0].asked) == list(runs[1].asked)


@pytest.mark.parametrize("seed", range(5))
def test_no_neighbour_of_the_end_is_better(seed: int):
    """Also of a function with many valleys."""

    def rough(point: Point) -> float:
        return valley(point) + 0.3 * math.sin(1000 * (1 + seed) * point.sigma_rel + 10 * point.guidance)

    axes = Axes([1000], LENGTHS, STRENGTHS)
    flat = Costs(lambda point: rough(Point(point.nimg, point.sigma_rel, point.guidance, EVERYWHERE)))
    best = coordinate_search(axes, axes.middle(), flat)
    i, j = LENGTHS.index(best.sigma_rel), STRENGTHS.index(best.guidance)
    sides = [(i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]
    neighbours = [(a, b) for a, b in sides if 0 <= a < len(LENGTHS) and 0 <= b < len(STRENGTHS)]
    for a, b in neighbours:
        assert flat.asked[best] <= flat.function(axes.point(nimg=1000, sigma_rel=LENGTHS[a], guidance=STRENGTHS[b]))


def test_an_optimum_at_the_end_of_an_axis_and_no_guidance():
    axes = Axes([1000], LENGTHS, [1.0, 1.5, 2.0, 2.5], [EVERYWHERE, Interval(0.2, 3.0)], [0.05, 0.1])
    costs = Costs(lambda point: point.guidance + point.sigma_rel)
    assert coordinate_search(axes, axes.middle(), costs) == Point(1000, 0.01)


def test_from_no_guidance_to_guidance():
    """Where the start has none, the first step to it takes the middle interval and guide."""
    axes = Axes([1000], [0.05], [1.0, 1.5, 2.0], [EVERYWHERE, Interval(0.2, 3.0)], [0.05, 0.1])
    start = axes.point(nimg=1000, sigma_rel=0.05, guidance=1.0)
    costs = Costs(lambda point: -point.guidance - point.interval.lo + (point.guide_sigma_rel or 0))
    assert coordinate_search(axes, start, costs) == Point(1000, 0.05, 2.0, Interval(0.2, 3.0), 0.05)


def test_values_that_are_none_are_never_best():
    axes = Axes([1000], LENGTHS)
    costs = Costs(lambda point: math.nan if point.sigma_rel < 0.1 else point.sigma_rel)
    assert coordinate_search(axes, axes.middle(), costs).sigma_rel == 0.1


def test_equal_values_do_not_move_it():
    costs = Costs(lambda point: 1.0)
    assert coordinate_search(AXES, AXES.middle(), costs) == AXES.middle()
