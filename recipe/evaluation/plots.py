"""Figures of sweeps and of averages: a metric against the length of the average, and over training; profiles.

Each function returns a figure of its own, drawn without a display and without matplotlib's global state; `encoded`
makes a PNG or SVG of it.
"""

import io
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes as Plot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from recipe.edm2.ema import gamma_from_sigma_rel, profile_error, solve_posthoc_coefficients
from recipe.evaluation.points import COORDINATES, shown
from recipe.evaluation.sweep import Result
from recipe.evaluation.sweep_table import cost, optimum
from recipe.weights.snapshots import SnapshotFile

COLOURS = ("#1f6f8b", "#d1495b", "#66a182", "#edae49", "#7a5195", "#444444", "#a05c2c", "#2ca3a0")
MOST_LINES = 8  # in one plot: more cannot be told apart
DPI = 120
LEAST_ERROR = 1e-5  # that is drawn; tracked lengths have none
Series = list[tuple[float, float]]


def encoded(figure: Figure, suffix: str) -> bytes:
    """The figure as a file: of ".png" or ".svg"."""
    buffer = io.BytesIO()
    quiet = {"Date": None} if suffix == ".svg" else {"Software": "edm2-recipe"}
    figure.savefig(buffer, format=suffix[1:], dpi=DPI, metadata=quiet)
    return buffer.getvalue()


def _figure(columns: int = 1, width: float = 6.4, height: float = 4.0) -> tuple[Figure, list[Plot]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    plots = [figure.add_subplot(1, columns, column + 1) for column in range(columns)]
    for plot in plots:
        plot.spines[["top", "right"]].set_visible(False)
        plot.grid(alpha=0.25, linewidth=0.6)
    return figure, plots


def vertex(points: Series) -> tuple[float, float]:
    """The lowest point of the parabola through three points (x, y), if it lies between them; else the lowest of them.

    Args:
        points: with x rising.
    """
    lowest = min(points, key=lambda point: point[1])
    if len(points) != 3 or lowest != points[1]:
        return lowest
    x, y = np.array(points).T
    a, b, c = np.polyfit(x - x[1], y, 2)
    if not a > 0 or not x[0] <= x[1] - b / (2 * a) <= x[2]:
        return lowest
    return float(x[1] - b / (2 * a)), float(c - b * b / (4 * a))


def best_of(series: Series, metric: str) -> tuple[float, float]:
    """Where a metric is best along x: of the best value and its neighbours, the vertex of their parabola."""
    costs = [(x, cost(metric, y)) for x, y in series]
    index = min(range(len(costs)), key=lambda each: costs[each][1])
    x, y = vertex(costs[max(index - 1, 0) : index + 2])
    return x, cost(metric, y)


def _lines(results: Sequence[Result], metric: str, along: str) -> dict[str, Series]:
    """The values along a coordinate, a line for each combination of the others, best first, by what tells it apart."""
    others = [name for name in COORDINATES if name != along]
    many = [name for name in others if len({getattr(result.point, name) for result in results}) > 1]
    found: dict[str, Series] = {}
    for result in results:
        value = result.values.get(metric, math.nan)
        if math.isfinite(value):
            label = ", ".join(f"{name} {shown(name, getattr(result.point, name))}" for name in many)
            found.setdefault(label, []).append((float(getattr(result.point, along)), value))
    ranked = sorted(found.items(), key=lambda item: min(cost(metric, value) for _, value in item[1]))
    return {label: sorted(series) for label, series in ranked}


def metric_against_length(results: Sequence[Result], metric: str) -> Figure:
    """A metric against sigma_rel: a line for each combination of the other coordinates, the best 8, optima marked."""
    figure, (plot,) = _figure()
    lines = _lines(results, metric, "sigma_rel")
    for colour, (label, series) in zip(COLOURS, list(lines.items())[:MOST_LINES], strict=False):
        x, y = zip(*series, strict=True)
        best = best_of(series, metric)
        text = f"{label + ': ' if label else ''}{best[1]:.4g} at {best[0]:.3f}"
        plot.plot(x, y, "o-", color=colour, markersize=3.5, linewidth=1.3, label=text)
        plot.plot(*best, marker="*", color=colour, markersize=13, markeredgecolor="white", zorder=3)
    left = len(lines) - MOST_LINES
    title = "★ optimum (parabola through the best three)" + (f"; {left} worse lines left out" if left > 0 else "")
    plot.set_title(title, fontsize=9, loc="left")
    plot.set(xlabel="length of the average, sigma_rel", ylabel=metric)
    plot.legend(fontsize=8, frameon=False)
    return figure


def heat_map(results: Sequence[Result], metric: str) -> Figure:
    """A metric over guidance (up) and sigma_rel (right), the best over all other coordinates, the optimum marked."""
    figure, (plot,) = _figure()
    lengths = sorted({result.point.sigma_rel for result in results})
    strengths = sorted({result.point.guidance for result in results})
    grid = np.full((len(strengths), len(lengths)), np.nan)
    for result in results:
        row, column = strengths.index(result.point.guidance), lengths.index(result.point.sigma_rel)
        value, there = result.values.get(metric, math.nan), grid[row, column]
        if math.isfinite(value) and not cost(metric, there) <= cost(metric, value):
            grid[row, column] = value
    image = plot.imshow(grid, origin="lower", aspect="auto", cmap="viridis")
    plot.set_xticks(range(len(lengths)), [f"{length:.3f}" for length in lengths], rotation=60, fontsize=8)
    plot.set_yticks(range(len(strengths)), [f"{strength:g}" for strength in strengths], fontsize=8)
    plot.grid(visible=False)
    if grid.size <= 150:
        _write_cells(plot, grid)
    best = optimum(results, metric)
    if best is not None:
        place = lengths.index(best.point.sigma_rel), strengths.index(best.point.guidance)
        corner = place[0] - 0.5, place[1] - 0.5
        plot.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=COLOURS[1], linewidth=2.5))
    figure.colorbar(image, ax=plot, label=metric)
    plot.set(xlabel="length of the average, sigma_rel", ylabel="guidance")
    return figure


def _write_cells(plot: Plot, grid: NDArray[np.float64]) -> None:
    """The values in the cells of a heat map, light on dark."""
    lo, hi = np.nanmin(grid), np.nanmax(grid)
    for (row, column), value in np.ndenumerate(grid):
        if math.isfinite(value):
            dark = value < lo + 0.6 * (hi - lo)
            plot.text(column, row, f"{value:.3g}", ha="center", va="center", fontsize=7, color="w" if dark else "k")


def metric_over_training(results: Sequence[Result], metric: str) -> Figure:
    """The best value at each snapshot's time, over all other coordinates, and the length that gave it."""
    figure, (plot,) = _figure()
    times = sorted({result.point.nimg for result in results})
    best = [optimum([result for result in results if result.point.nimg == time], metric) for time in times]
    found = [result for result in best if result is not None]
    x = [result.point.nimg for result in found]
    y = [result.values[metric] for result in found]
    plot.plot(x, y, "o-", color=COLOURS[0], markersize=4, linewidth=1.3)
    for each, value, result in zip(x, y, found, strict=True):
        label = f"{result.point.sigma_rel:.3f}"
        plot.annotate(label, (each, value), textcoords="offset points", xytext=(4, 5), fontsize=7)
    plot.set_title("beside each point: the best sigma_rel at that time", fontsize=9, loc="left")
    plot.set(xlabel="images seen", ylabel=f"{metric}, the best of all others")
    return figure


def ema_profiles(snapshots: Sequence[SnapshotFile], nimg: int, sigma_rels: Sequence[float]) -> Figure:
    """Profiles of averages (eq. 1) with their reconstructions from snapshots, and the relative L2 error of any length.

    Args:
        snapshots: those with 0 < time <= nimg.
        nimg: time at which the averages end.
        sigma_rels: lengths of the profiles on the left; on the right the error from 0.01 to 0.28 (as Figure 4).
    """
    figure, (profiles, errors) = _figure(2, 9.6, 3.8)
    given = [snapshot.nimg for snapshot in snapshots], [snapshot.sigma_rel for snapshot in snapshots]
    times = np.linspace(0, nimg, 1201)[1:]
    own = np.stack([_profile(times, *each) for each in zip(*given, strict=True)])
    for colour, length in zip(COLOURS, sigma_rels, strict=False):
        wanted = _profile(times, nimg, length) * nimg
        made = solve_posthoc_coefficients(*given, nimg, length)[:, 0] @ own * nimg
        profiles.plot(times, wanted, color=colour, linewidth=1.2, label=f"{length:.3f}")
        profiles.plot(times, made, color=colour, linewidth=2.4, linestyle=(0, (1, 2)))
    profiles.set_title("lines: wanted, dots: from snapshots", fontsize=9, loc="left")
    profiles.set(xlabel="images seen", ylabel="weight of a moment, relative to uniform")
    profiles.legend(title="sigma_rel", fontsize=8, title_fontsize=8, frameon=False)
    lengths = np.linspace(0.01, 0.28, 109)
    coefficients = solve_posthoc_coefficients(*given, nimg, lengths)
    found = profile_error(*given, nimg, lengths, coefficients)
    errors.semilogy(lengths, np.maximum(found, LEAST_ERROR), color=COLOURS[0], linewidth=1.3)
    errors.set_title(f"from {len(snapshots)} snapshots", fontsize=9, loc="left")
    errors.set(xlabel="sigma_rel", ylabel="relative L2 error of the profile")
    return figure


def _profile(times: NDArray[np.float64], end: float, sigma_rel: float) -> NDArray[np.float64]:
    """The power-function profile that ends at `end` (eq. 1), 0 after it; its integral is 1."""
    gamma = gamma_from_sigma_rel(float(sigma_rel))
    ratio = np.where(times <= end, times / end, 0.0)
    return (gamma + 1) / end * np.where(ratio > 0, ratio**gamma, 0.0)
