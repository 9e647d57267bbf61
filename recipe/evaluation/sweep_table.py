"""What a sweep found: as a table with its optimum, as CSV, and whether the optimum may lie beyond what was swept."""

import csv
import io
import math
from collections.abc import Sequence

from recipe.evaluation.points import COORDINATES, Axes, shown
from recipe.evaluation.sweep import Result

RISING = ("precision", "recall", "density", "coverage", "is")
"""Values that are better when higher; all others are distances, and spreads."""
LONGEST = 40  # rows of a table


def higher_is_better(metric: str) -> bool:
    return metric in RISING


def cost(metric: str, value: float) -> float:
    """A number that is lower for the better value."""
    return -value if higher_is_better(metric) else value


def optimum(results: Sequence[Result], metric: str) -> Result | None:
    """The result with the best value; the first of equal ones; None if there is no finite one."""
    finite = [result for result in results if math.isfinite(result.values.get(metric, math.nan))]
    return min(finite, key=lambda result: cost(metric, result.values[metric])) if finite else None


def varying(results: Sequence[Result]) -> list[str]:
    """The coordinates of which there is more than one value."""
    return [name for name in COORDINATES if len({getattr(result.point, name) for result in results}) > 1]


def metrics_of(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result.values))


def table(results: Sequence[Result], metric: str) -> str:
    """Rows of all points, the optimum marked; of more than 40 points the best 40, best first."""
    best = optimum(results, metric)
    names, metrics = varying(results) or ["sigma_rel"], metrics_of(results)
    chosen = list(results)
    if len(chosen) > LONGEST:
        worst = math.inf
        values = {id(result): cost(metric, result.values.get(metric, math.nan)) for result in chosen}
        chosen.sort(key=lambda result: worst if math.isnan(values[id(result)]) else values[id(result)])
        chosen = chosen[:LONGEST]
    rows = [[*names, *metrics]]
    for result in chosen:
        cells = [shown(name, getattr(result.point, name)) for name in names]
        rows.append([*cells, *(f"{result.values.get(name, math.nan):.6g}" for name in metrics)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    marks = ["", *("  <- best" if result is best else "" for result in chosen)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + mark
        for row, mark in zip(rows, marks, strict=True)
    ]
    left = len(results) - len(chosen)
    return "\n".join([*lines, f"and {left} points that are worse"] if left else lines)


def csv_text(results: Sequence[Result]) -> str:
    """All results as CSV: the coordinates (an interval as its ends), the metrics, and seconds."""
    metrics = metrics_of(results)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["nimg", "sigma_rel", "guidance", "from", "to", "guide_sigma_rel", *metrics, "seconds"])
    for result in results:
        point = result.point
        length = "" if point.guide_sigma_rel is None else repr(point.guide_sigma_rel)
        where = [point.nimg, point.sigma_rel, point.guidance, point.interval.lo, point.interval.hi, length]
        writer.writerow([*where, *(repr(result.values.get(name, math.nan)) for name in metrics), result.seconds])
    return buffer.getvalue()


def borders(best: Result, axes: Axes) -> list[str]:
    """A sentence for each coordinate whose best value is the first or last of those swept: more may be beyond it.

    The last snapshot, and no guidance at all, are borders of what there is, and not named.
    """
    found = []
    for name in ("sigma_rel", "guidance", "guide_sigma_rel"):
        values, value = axes.values(name), getattr(best.point, name)
        if len(values) < 2 or value not in (values[0], values[-1]) or (name == "guidance" and value == 1):
            continue
        end, more = ("lowest", "lower") if value == values[0] else ("highest", "higher")
        found.append(
            f"the best {name}, {shown(name, value)}, is the {end} that was swept: the optimum may lie beyond it; sweep "
            f"{more} ones, too"
        )
    return found
