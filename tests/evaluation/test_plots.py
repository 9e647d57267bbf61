"""Figures of sweeps: their numbers are read back from what was drawn, and the files are looked at as files."""

import io
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from recipe.edm2.ema import profile_error, solve_posthoc_coefficients
from recipe.evaluation import plots
from recipe.evaluation.points import Axes
from recipe.evaluation.sweep import Result
from recipe.weights.snapshots import SnapshotFile

LENGTHS = [0.05, 0.075, 0.10, 0.125, 0.15]
AXES = Axes([1000, 2000], LENGTHS, [1.0, 1.5, 2.0])


def results(axes: Axes = AXES) -> list[Result]:
    """Lowest at 0.09 and guidance 1.5; later is better; recall rises to 0.11."""
    found = []
    for point in axes.grid():
        fd = 2 + 1000 * (point.sigma_rel - 0.09) ** 2 + (point.guidance - 1.5) ** 2 - point.nimg / 1e4
        found.append(Result(point, {"fd": fd, "recall": 0.8 - 100 * (point.sigma_rel - 0.11) ** 2}))
    return found


def test_the_vertex_of_a_parabola():
    assert plots.vertex([(0.0, 3.25), (1.0, 1.25), (3.0, 3.25)]) == pytest.approx((1.5, 1.0))
    assert plots.vertex([(0.0, 1.0), (1.0, 2.0), (2.0, 5.0)]) == (0.0, 1.0)  # on the border nothing is extrapolated
    assert plots.vertex([(0.0, 1.0), (1.0, 0.5)]) == (1.0, 0.5)
    assert plots.vertex([(0.0, 1.0), (1.0, 1.0), (2.0, 1.0)])[1] == 1.0


@pytest.mark.parametrize(("metric", "best"), [("fd", (0.09, 1.8)), ("recall", (0.11, 0.8))])
def test_the_optimum_is_marked_where_it_is(metric: str, best: tuple[float, float]):
    """Also of what is better when higher; the functions are parabolas, so it is exact."""
    (plot,) = plots.metric_against_length(results(), metric).axes
    stars = [line for line in plot.lines if line.get_marker() == "*"]
    assert len(stars) == 6  # a line for each strength and time
    x, y = (float(values[0]) for values in stars[0].get_data())  # pyright: ignore
    assert (x, y) == pytest.approx(best)
    assert f"{best[1]:.4g} at {best[0]:.3f}" in plot.get_legend().get_texts()[0].get_text()  # pyright: ignore


def test_more_lines_than_can_be_told_apart():
    axes = Axes([1000], LENGTHS, [1 + 0.1 * index for index in range(12)])
    (plot,) = plots.metric_against_length(results(axes), "fd").axes
    assert len([line for line in plot.lines if line.get_marker() == "o"]) == plots.MOST_LINES
    assert "4 worse lines left out" in plot.get_title(loc="left")


def test_the_heat_map_holds_the_best_over_the_rest():
    figure = plots.heat_map(results(), "fd")
    image = figure.axes[0].images[0].get_array()
    assert image is not None and image.shape == (3, 5)
    expected = {(r.point.guidance, r.point.sigma_rel): r.values["fd"] for r in results() if r.point.nimg == 2000}
    for (row, column), value in np.ndenumerate(image):
        assert value == pytest.approx(expected[AXES.guidance[row], LENGTHS[column]])
    (mark,) = figure.axes[0].patches
    assert isinstance(mark, Rectangle) and mark.get_xy() == (1.5, 0.5)  # around 0.10 and 1.5


def test_over_training_the_best_of_each_time():
    (plot,) = plots.metric_over_training(results(), "fd").axes
    (line,) = plot.lines
    assert list(line.get_xdata()) == [1000, 2000]  # pyright: ignore
    assert list(line.get_ydata()) == [min(r.values["fd"] for r in results() if r.point.nimg == t) for t in (1000, 2000)]  # pyright: ignore
    assert [text.get_text() for text in plot.texts] == ["0.100", "0.100"]


@pytest.fixture(scope="module")
def profiles() -> Figure:
    return plots.ema_profiles(SNAPSHOTS, 16000, [0.05, 0.13])


SNAPSHOTS = [SnapshotFile(1000 * (index + 1), length, Path("none")) for index in range(16) for length in (0.05, 0.10)]


def test_profiles_have_their_width_and_the_reconstruction_its_error(profiles: Figure):
    left, right = profiles.axes
    for length, line in zip((0.05, 0.13), left.lines[::2], strict=True):
        times, weights = (np.asarray(values, float) for values in line.get_data())
        weights = weights / weights.sum()
        mean = (times * weights).sum()
        deviation = np.sqrt(((times - mean) ** 2 * weights).sum()) / 16000
        assert deviation == pytest.approx(length, rel=0.02)  # that is what sigma_rel says (eq. 123)
    wanted, made = (np.asarray(line.get_ydata(), float) for line in left.lines[2:4])
    given = [each.nimg for each in SNAPSHOTS], [each.sigma_rel for each in SNAPSHOTS]
    error = profile_error(*given, 16000, 0.13, solve_posthoc_coefficients(*given, 16000, 0.13))[0]
    drawn = np.sqrt(((made - wanted) ** 2).sum() / (wanted**2).sum())
    assert drawn == pytest.approx(error, rel=0.25)  # of 1200 moments
    lengths, errors = (np.asarray(values, float) for values in right.lines[0].get_data())
    assert errors[np.argmin(abs(lengths - 0.13))] == pytest.approx(error, rel=0.05)


def test_files(profiles: Figure):
    png = Image.open(io.BytesIO(plots.encoded(profiles, ".png")))
    assert png.size[0] > 600 and np.asarray(png.convert("L")).std() > 5
    svg = ElementTree.fromstring(plots.encoded(profiles, ".svg"))
    assert svg.tag.endswith("svg") and len(list(svg.iter())) > 100


def test_nothing_global_is_changed():
    """No figure is left with pyplot, and no setting."""
    before, there = dict(mpl.rcParams), "matplotlib.pyplot" in sys.modules
    plots.encoded(plots.heat_map(results(), "fd"), ".png")
    assert dict(mpl.rcParams) == before
    if there:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []
    else:
        assert "matplotlib.pyplot" not in sys.modules
