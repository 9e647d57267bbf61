"""The page of a real run in headless Chromium without a network: it works, is silent, and asks for nothing."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from helpers.browser import Browser, find_browser
from helpers.commands import train_arguments
from helpers.forks import run_forked
from recipe.evaluation.points import Axes
from recipe.evaluation.sweep import Results, Sweep
from recipe.reporting.contents import read_contents
from recipe.reporting.page import page
from recipe.storage.local import LocalPlace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(700)]

EVIL = "</script><script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser(find_browser()) as browser:
        yield browser


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run with grids and a sweep; a curve and the sweep have hostile names."""
    folder = tmp_path_factory.mktemp("browser") / "run"
    samples = ("samples.interval=8ba", "samples.count=10", "samples.num_steps=2", "logging.interval=4ba")
    done = run_forked("train.py", *train_arguments(digits, folder, *samples, "duration=24ba"))
    assert done.returncode == 0, done.stdout + done.stderr
    writer = SummaryWriter(folder / "tensorboard" / "other")
    for step in range(20):
        writer.add_scalar(f"{EVIL}/x", step - 5, step)
    writer.close()
    results = Results(LocalPlace(folder / "sweeps" / "fd"), {"run": EVIL, "metric": "fd"})
    results.begin()
    grid = Axes([384], [0.05, 0.1, 0.15], [1.0, 2.0]).grid()
    Sweep(results, lambda p: {"fd": 1 + (p.sigma_rel - 0.1) ** 2 + p.guidance, EVIL: p.sigma_rel})(grid)
    return folder


@pytest.fixture(scope="module")
def opened(browser: Browser, run: Path) -> Browser:
    path = run / "report.html"
    path.write_text(page(read_contents(str(run))))
    browser.dark(False)
    browser.open(path)
    return browser


def test_it_is_silent_and_asks_for_nothing(opened: Browser, run: Path):
    """No word on the console, no request but for the page and its own images."""
    opened.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    opened.run("new Promise((resolve) => setTimeout(resolve, 200))")
    assert opened.said == []
    assert opened.run("document.title") == "tiny"
    outside = [url for url in opened.requests if not url.startswith("data:")]
    assert outside == [(run / "report.html").as_uri()[:100]]
    assert opened.run("document.querySelectorAll('script').length") == 2
    assert EVIL in opened.run("document.querySelector('main').textContent")


def test_that_the_console_and_requests_are_heard(browser: Browser, tmp_path: Path):
    """The checks above can fail: a page that does both, and one whose policy forbids what it tries."""
    bad = tmp_path / "bad.html"
    bad.write_text("<title>x</title><img src='http://example.invalid/x.png'><script>console.log(1); none()</script>")
    said, requests = len(browser.said), len(browser.requests)
    browser.open(bad)
    browser.run("1")
    words = " ".join(browser.said[said:])
    assert "console: " in words and "none is not defined" in words
    assert "http://example.invalid/x.png" in browser.requests[requests:]
    del browser.said[said:], browser.requests[requests:]


@pytest.fixture
def fresh(browser: Browser, opened: Browser, run: Path) -> Browser:
    browser.open(run / "report.html")
    return browser


def test_curves_are_drawn_and_say_values(fresh: Browser):
    fresh.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    fresh.run("new Promise((resolve) => setTimeout(resolve, 200))")
    charts = fresh.run("document.querySelectorAll('#charts .chart').length")
    assert charts > 5 and fresh.run("document.querySelectorAll('#charts svg path[stroke]').length") >= charts - 1
    box: dict[str, float] = fresh.run(BOX)
    fresh.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] / 2)
    fresh.run("new Promise((resolve) => setTimeout(resolve, 200))")
    said = fresh.run("document.querySelector('#charts .chart .value').textContent")
    assert said.startswith("batch ") and 8 < int(said.split()[1].rstrip(":")) < 20, said


BOX = """(() => {
  document.getElementById('charts').scrollIntoView();
  const box = document.querySelector('#charts svg').getBoundingClientRect();
  return {x: box.x, y: box.y, width: box.width, height: box.height};
})()"""


def test_logarithmic_and_linear(fresh: Browser):
    """The curve changes, and what has no logarithm is said."""
    fresh.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    fresh.run("new Promise((resolve) => setTimeout(resolve, 200))")
    line = "document.querySelector('#charts svg path[stroke]').getAttribute('d')"
    linear = fresh.run(line)
    fresh.run("document.getElementById('log').click()")
    assert fresh.run(line) != linear
    assert "6 values of 0 or below have no logarithm" in fresh.run("document.getElementById('charts').textContent")
    fresh.run("document.getElementById('log').click()")
    assert fresh.run(line) == linear


def test_the_slider_goes_through_time(fresh: Browser):
    state = "[document.getElementById('grid-said').textContent, document.getElementById('grid').src]"
    width = "document.getElementById('grid').decode().then(() => document.getElementById('grid').naturalWidth)"
    times = fresh.run("Number(document.getElementById('time').max)") + 1
    assert times >= 3
    seen = {}
    for index in range(times):
        fresh.change("#time", index, "input")
        text, source = fresh.run(state)
        assert source.startswith("data:image/png;base64,") and fresh.run(width) == 80
        seen[text] = source
    assert len(seen) == len(set(seen.values())) == times and "384 images seen" in seen
    before = fresh.run(state)
    fresh.run("document.querySelectorAll('#kinds input')[1].click()")
    assert fresh.run(state)[1] != before[1]


def test_a_sweep_shows_its_optimum(fresh: Browser):
    rows: list[Any] = fresh.run("[...document.querySelectorAll('#sweep-0 tr.best td')].map((each) => each.textContent)")
    assert rows[:2] == ["0.100", "1"] and rows[2] == "2"
    assert fresh.run("document.querySelectorAll('#sweep-0 svg circle').length") == 6 + 1
    fresh.change("#sweep-0 select", 1, "change")
    best = fresh.run("document.querySelector('#sweep-0 tr.best td').textContent")
    assert best == "0.050"


@pytest.mark.parametrize("dark", [False, True])
def test_it_follows_the_readers_colours(fresh: Browser, dark: bool, tmp_path: Path):
    fresh.dark(dark)
    shot = np.asarray(Image.open(io.BytesIO(fresh.screenshot())).convert("L"), dtype=float)
    background = np.median(shot)
    assert (background < 60) if dark else (background > 200)
    assert shot.std() > 8  # something is drawn on it
    fresh.dark(False)
