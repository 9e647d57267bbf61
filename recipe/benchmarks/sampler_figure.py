"""Draws the table of quality against evaluations in docs/sampling.md.

python -m recipe.benchmarks.sampler_figure docs/sampling.md docs/samplers.png
"""

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from recipe.command_line import UserError, exit_with

HEAD = "| sampler, evaluations: |"
REAL, FLOW = 0.22, 0.63  # distances of as many real digits, and of the exact probability flow
SHOWN = {  # colour, whether deterministic
    "heun": ("#d1495b", True), "unipc": ("#1f6f8b", True), "dpmpp_2m": ("#66a182", True), "euler": ("#8a8a8a", True),
    "unipc --order 3": ("#7fb7c9", True), "euler_ancestral": ("#8a8a8a", False), "dpmpp_2m_sde": ("#66a182", False),
    "restart": ("#d1495b", False),
}  # fmt: skip
"""The others catch up with 23 evaluations only, and are far off the scale before."""

TABLE = "Table"  # note of the PNG: the table's digest
Curve = list[tuple[int, float, float | None]]  # evaluations, distance, difference from the flow's images


def read_table(text: str) -> Mapping[str, Curve]:
    """The rows of the table. Raises UserError if there is none."""
    lines = iter(text.splitlines())
    head = next((line for line in lines if line.startswith(HEAD)), None)
    if head is None:
        raise UserError(f"no table that begins with {HEAD!r}; name docs/sampling.md")
    counts = [int(cell) for cell in head.strip("| ").split("|")[1:]]
    next(lines)
    found: dict[str, Curve] = {}
    for line in lines:
        match = re.fullmatch(r"\| `([^`]+)` \|(.*)\|", line)
        if match is None:
            break
        cells = [[float(word) for word in cell.split(",")] if cell.strip() else [] for cell in match[2].split("|")]
        curve = zip(counts, cells, strict=True)
        found[match[1]] = [(count, cell[0], cell[1] if len(cell) > 1 else None) for count, cell in curve if cell]
    return found


def digest(table: Mapping[str, Curve]) -> str:
    """Tells which table a figure is of."""
    return hashlib.sha256(json.dumps(table).encode()).hexdigest()[:16]


def draw(table: Mapping[str, Curve]) -> Figure:
    """Both quantities of the table against the evaluations."""
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    quality, distance = figure.subplots(1, 2)
    for name, (colour, still) in SHOWN.items():
        style = {"color": colour, "linestyle": "-" if still else "--", "marker": "o" if still else "s", "markersize": 4}
        width = 2.2 if name in ("heun", "unipc") else 1.3
        curve = table[name]
        quality.plot([c for c, *_ in curve], [d for _, d, _ in curve], label=name, linewidth=width, **style)
        images = [(count, value) for count, _, value in curve if value is not None]
        if images:
            distance.plot(*zip(*images, strict=True), label=name, linewidth=width, **style)
    for level, said in ((FLOW, "exact flow"), (REAL, "real digits")):
        quality.axhline(level, color="#444444", linewidth=0.8, linestyle=":")
        quality.annotate(said, (63, level), textcoords="offset points", xytext=(0, 3), ha="right", fontsize=8)
    _dress(quality, "Fréchet distance to the digits", (0.2, 3), (0.2, 0.5, 1, 2))
    _dress(distance, "difference from the flow's images", (0.005, 3), (0.01, 0.1, 1))
    quality.legend(frameon=False, fontsize=8, ncols=2, loc="upper right")
    return figure


def _dress(plot: Axes, label: str, limits: tuple[float, float], ticks: tuple[float, ...]) -> None:
    plot.set(xscale="log", yscale="log", xlabel="evaluations of the network for an image", ylabel=label, ylim=limits)
    plot.set_xticks(counts := (5, 7, 11, 15, 23, 63), [str(count) for count in counts])
    plot.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    plot.minorticks_off()
    plot.spines[["top", "right"]].set_visible(False)
    plot.grid(alpha=0.25, linewidth=0.6)


def main() -> None:
    page, target = sys.argv[1:]
    try:
        table = read_table(Path(page).read_text(encoding="utf-8"))
    except UserError as error:
        exit_with("sampler_figure", error)
    draw(table).savefig(target, dpi=120, metadata={"Software": "edm2-recipe", TABLE: digest(table)})


if __name__ == "__main__":
    main()
