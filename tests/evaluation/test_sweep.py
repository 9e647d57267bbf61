"""Points and results of sweeps: shared, resumed, never mixed; what the table says of them."""

import csv
import io
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]

from recipe.edm2.samplers.guidance import EVERYWHERE, Interval
from recipe.evaluation.points import Axes, Point
from recipe.evaluation.sweep import Result, Results, Sweep, SweepError, read_results, share
from recipe.evaluation.sweep_table import borders, csv_text, optimum, table
from recipe.ranks import Ranks
from recipe.storage.addresses import open_place
from recipe.storage.local import LocalPlace

AXES = Axes([1000, 2000], [0.05, 0.10, 0.15], [1.0, 1.5, 2.0], [EVERYWHERE, Interval(0.28, 2.9)], [0.05, 0.2])
SETTINGS = {"run": "a", "images": "100"}


class Measured:
    """A smooth function of points that remembers what it was asked for; best at 0.10 and guidance 1.5."""

    def __init__(self):
        self.asked: list[Point] = []

    def __call__(self, point: Point) -> dict[str, float]:
        self.asked.append(point)
        return {"fd": 1 + 100 * (point.sigma_rel - 0.1) ** 2 + (point.guidance - 1.5) ** 2, "recall": point.sigma_rel}


def sweep(place, measure, settings=SETTINGS, ranks: Ranks | None = None) -> Sweep:
    results = Results(place, settings)
    if ranks is None or ranks.first:
        results.begin()
    return Sweep(results, measure, ranks=ranks or Ranks())


def test_points_have_names_of_their_own_and_come_back_from_json():
    points = AXES.grid()
    assert len(points) == 2 * 3 * (1 + 2 * 2 * 2)  # without guidance, interval and guide make no difference
    assert len({point.name for point in points}) == len(points)
    close = [Point(1000, 0.05, strength) for strength in (1.5, 1.5000000001)]
    assert close[0].name != close[1].name
    assert [Point.from_json(point.to_json()) for point in points] == points
    assert all("/" not in point.name for point in points)


@pytest.mark.parametrize("where", ["local", "s3"])
def test_it_goes_on_where_it_stopped(where: str, tmp_path: Path, request: pytest.FixtureRequest):
    place = LocalPlace(tmp_path) if where == "local" else open_place(request.getfixturevalue("bucket_folder"))
    points, first, second = AXES.grid(), Measured(), Measured()
    half = sweep(place, first)(points[:7])
    both = sweep(place, second)(points)
    assert first.asked == points[:7] and second.asked == points[7:]
    assert [result.values for result in both[:7]] == [result.values for result in half]
    assert [result.point for result in both] == points
    stored = {result.point: result.values for result in read_results(place)}
    assert stored == {point: Measured()(point) for point in points}
    assert len(place.list("points/")) == len(points)


class Watched(LocalPlace):
    """A place that remembers what was written."""

    written: list[str]

    def write(self, name: str, data: bytes) -> None:
        self.written.append(name)
        super().write(name, data)


def test_tasks_share_a_place(tmp_path: Path):
    """Each point is measured by one of them, and no file is written by two, whatever is there when they begin."""
    places = [Watched(tmp_path) for _ in range(4)]
    for place in places:
        place.written = []
    points, measures = AXES.grid(), [Measured() for _ in places]
    sweep(places[0], Measured())(points[1:2])  # one is there before
    with ThreadPoolExecutor(4) as pool:
        tasks = [
            pool.submit(sweep(place, measure), share(points, task, 4))
            for task, (place, measure) in enumerate(zip(places, measures, strict=True))
        ]
        found = [result.point for task in tasks for result in task.result()]
    assert sorted(found, key=points.index) == points
    assert sum(len(measure.asked) for measure in measures) == len(points) - 1
    written = [name for place in places for name in place.written]
    assert len(written) == len(set(written)) == len(points)


def test_ranks_measure_together_and_one_writes(tmp_path: Path):
    store, points = HashStore(), AXES.grid()[:4]
    places = [Watched(tmp_path) for _ in range(2)]
    measures = [Measured(), Measured()]
    for place in places:
        place.written = []
    sweep(places[0], Measured())(points[:1])
    places[0].written.clear()

    def work(rank: int) -> Sequence[Result]:
        return sweep(places[rank], measures[rank], ranks=Ranks(rank, 2, 2, store))(points)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(work, range(2))
    assert measures[0].asked == measures[1].asked == points[1:]
    assert [result.values for result in first] == [result.values for result in second]
    assert len(places[0].written) == 3 and places[1].written == []


def test_what_was_measured_otherwise_is_refused(tmp_path: Path):
    place = LocalPlace(tmp_path)
    sweep(place, Measured())(AXES.grid()[:2])
    with pytest.raises(SweepError, match=r"images is 100 there and 200 here.*name another --out"):
        sweep(place, Measured(), SETTINGS | {"images": "200"})
    (tmp_path / "sweep.json").unlink()  # the results say it, too
    with pytest.raises(SweepError, match="images is 100 there and 200 here"):
        sweep(place, Measured(), SETTINGS | {"images": "200"})(AXES.grid()[:1])


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"edm2-recipe sweep 1": {"point": 3}}', "\x00"])
def test_files_of_others_are_refused_and_stay(text: str, tmp_path: Path):
    place, point = LocalPlace(tmp_path), AXES.grid()[0]
    run = sweep(place, Measured())
    place.write(f"points/{point.name}.json", text.encode())
    with pytest.raises(SweepError, match="is no result of a sweep"):
        run([point])
    assert place.read(f"points/{point.name}.json") == text.encode()
    place.write("sweep.json", text.encode())
    with pytest.raises(SweepError, match=r"is not of a sweep|holds a sweep of other settings"):
        sweep(place, Measured())


def test_a_result_of_another_point_is_refused(tmp_path: Path):
    place, (one, other) = LocalPlace(tmp_path), AXES.grid()[:2]
    sweep(place, Measured())([one])
    place.write(f"points/{other.name}.json", place.read(f"points/{one.name}.json"))
    with pytest.raises(SweepError, match="holds the result of another point"):
        sweep(place, Measured())([other])


def test_values_that_are_not_finite_are_kept(tmp_path: Path):
    point = AXES.grid()[0]
    sweep(LocalPlace(tmp_path), lambda point: {"fd": math.nan})([point])
    (result,) = read_results(LocalPlace(tmp_path))
    assert math.isnan(result.values["fd"]) and optimum([result], "fd") is None
    assert "nan" in table([result], "fd") and "<- best" not in table([result], "fd")


def results(points: Sequence[Point]) -> list[Result]:
    return [Result(point, Measured()(point), 2.0) for point in points]


def test_the_table_marks_the_optimum():
    lines = table(results(Axes([1000], [0.05, 0.10, 0.15], [1.0, 1.5]).grid()), "fd").splitlines()
    assert lines[0].split() == ["sigma_rel", "guidance", "fd", "recall"] and len(lines) == 7
    (best,) = [line for line in lines if "<- best" in line]
    assert best.split()[:3] == ["0.100", "1.5", "1"]
    rising = table(results(Axes([1000], [0.05, 0.10, 0.15]).grid()), "recall")
    assert "0.150" in next(line for line in rising.splitlines() if "<- best" in line)


def test_a_long_table_shows_the_best():
    found = results(Axes([1000], [round(0.01 + 0.002 * index, 3) for index in range(120)]).grid())
    lines = table(found, "fd").splitlines()
    assert len(lines) == 42 and lines[-1] == "and 80 points that are worse"
    assert "0.100" in lines[1] and "<- best" in lines[1]


def test_csv_holds_everything():
    found = results(AXES.grid())
    rows = list(csv.DictReader(io.StringIO(csv_text(found))))
    assert len(rows) == len(found)
    for row, result in zip(rows, found, strict=True):
        assert (int(row["nimg"]), float(row["sigma_rel"]), float(row["fd"])) == (
            result.point.nimg,
            result.point.sigma_rel,
            result.values["fd"],
        )
        assert (float(row["from"]), float(row["to"])) == tuple(result.point.interval)


@pytest.mark.parametrize(
    ("lengths", "strengths", "said"),
    [
        ([0.05, 0.10, 0.15], [1.0, 1.5, 2.0], []),
        ([0.10, 0.15], [1.0, 1.5, 2.0], ["sigma_rel, 0.100, is the lowest"]),
        ([0.05, 0.10], [1.0, 1.5], ["sigma_rel, 0.100, is the highest", "guidance, 1.5, is the highest"]),
        ([0.10], [1.5], []),  # nothing was swept
        ([0.05, 0.10, 0.15], [1.0], []),
    ],
)
def test_an_optimum_on_the_border_is_said(lengths: list[float], strengths: list[float], said: list[str]):
    axes = Axes([1000], lengths, strengths)
    best = optimum(results(axes.grid()), "fd")
    assert best is not None
    found = borders(best, axes)
    assert len(found) == len(said) and all(text in line for text, line in zip(said, found, strict=True))


def test_no_guidance_is_no_border():
    axes = Axes([1000], [0.05, 0.10, 0.15], [1.0, 3.0, 4.0])
    best = optimum(results(axes.grid()), "fd")
    assert best is not None and best.point.guidance == 1 and borders(best, axes) == []


@pytest.mark.parametrize("name", ["table.csv", "sigma_rel.png", "profiles.svg"])
def test_a_users_file_where_the_table_or_a_figure_is_to_go(name: str, tmp_path: Path):
    """It is told before anything is measured, and stays; the sweep's own are made anew."""
    (tmp_path / name).write_text("mine")
    with pytest.raises(SweepError, match=f"{name}: is there, and is not of a sweep; name another --out"):
        sweep(LocalPlace(tmp_path), Measured())
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "mine"}
    (tmp_path / name).unlink()
    sweep(LocalPlace(tmp_path), Measured())
    (tmp_path / name).write_text("the sweep's")
    sweep(LocalPlace(tmp_path), Measured())


def test_the_strongest_guidance_is_the_furthest_from_none():
    assert Axes([1], [0.1], [1.0, 1.5, 2.0]).strongest() == 2.0
    assert Axes([1], [0.1], [0.25, 1.0, 1.5]).strongest() == 0.25
    assert Axes([1], [0.1]).strongest() == 1.0
