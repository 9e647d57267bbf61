"""The page of a run: complete, bounded, and without a way for what a run holds to become anything but text."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from helpers.small_snapshots import refused_in_process, write_run
from recipe import report
from recipe.evaluation.points import Axes
from recipe.evaluation.sweep import Results, Sweep
from recipe.reporting.contents import ReportError, read_contents
from recipe.reporting.grids import read_grids
from recipe.reporting.page import page
from recipe.storage.addresses import open_place
from recipe.storage.local import LocalPlace

EVIL = "<script>alert(1)</script>"
CLOSING = "</script><img src=x onerror=alert(2)>'\"&amp;<!--"


class Elements(HTMLParser):
    """The elements of a page, with their attributes and text."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def grid(path: Path, size: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((size, size), 80).save(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which every name and text that a user can choose is hostile."""
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, 2)
    name = json.dumps(EVIL)
    (folder / "config.yaml").write_text(f"# edm2-recipe 0.1.0\nrun_name: {name}\nnote: {CLOSING}\n")
    writer = SummaryWriter(folder / "tensorboard" / "run", purge_step=0)
    for step in range(30):
        writer.add_scalar("loss/train/total", 5 / (step + 1), step)
        writer.add_scalar(f"{CLOSING}/{EVIL}", step, step)
    writer.close()
    for nimg in (1000, 2000):
        for kind in ("raw", "ema-0.050"):
            grid(folder / "samples" / f"{nimg:011d}-{kind}.png")
    results = Results(LocalPlace(folder / "sweeps" / "evil <b>"), {"run": EVIL, "metric": "fd", CLOSING: CLOSING})
    results.begin()
    Sweep(results, lambda point: {"fd": point.sigma_rel, CLOSING: 1.0})(Axes([2000], [0.05, 0.1], [1.0, 2.0]).grid())
    return folder


@pytest.fixture(scope="module")
def text(run: Path) -> str:
    return page(read_contents(str(run)))


def test_nothing_of_the_run_becomes_markup(text: str):
    elements = Elements(text).found
    scripts = [attributes for tag, attributes in elements if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "drawn"}, {}]
    assert [attributes for tag, attributes in elements if tag == "img"] == [{"id": "grid", "alt": ""}]
    assert not [key for _, attributes in elements for key in attributes if key.startswith("on") or key == "style"]
    assert "b" not in {tag for tag, _ in elements}
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids)) > 5  # the script finds by them
    words = "".join(Elements(text).texts)
    assert EVIL in words and CLOSING in words  # they are shown, as text


def test_no_address_is_fetched(text: str):
    """No attribute that loads anything, and a policy that allows nothing but what the page itself holds."""
    elements = Elements(text).found
    links = [attributes for _, attributes in elements if {"src", "href"} & attributes.keys()]
    assert all(
        (attributes.get("href") or "").startswith(("#", "data:")) and "src" not in attributes for attributes in links
    )
    assert "://" not in re.sub(r"http://www\.w3\.org/2000/svg", "", text.replace("/tmp", ""))
    (policy,) = [attributes["content"] for tag, attributes in elements if "http-equiv" in attributes]
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    for tag in ("style", "script"):
        content = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[-1]
        assert base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() in policy


def test_what_the_script_reads(text: str):
    written = re.findall(r'id="drawn">(.*?)</script>', text, re.DOTALL)[0]
    assert not set(written) & set("<>&")  # nothing can end the element, or begin a comment in it
    data = json.loads(written)
    loss = next(curve for curve in data["curves"] if curve["tag"] == "loss/train/total")
    assert loss["x"] == list(range(30)) and loss["y"][4] == pytest.approx(1)
    assert len(data["grids"]) == 4 and {grid["kind"] for grid in data["grids"]} == {"raw", "ema-0.050"}
    assert base64.b64decode(data["grids"][0]["png"]).startswith(b"\x89PNG")
    (sweep,) = data["sweeps"]
    assert sweep["metrics"][0] == "fd" and [row["best"] for row in sweep["rows"]] == [True, False, False, False]


def test_it_says_what_the_run_is(text: str):
    words = " ".join(Elements(text).texts)
    for said in ("2,000", "edm2-recipe", "0.100", "snapshot", "digits", "parameters"):
        assert said in words, said


def test_the_bytes_of_grids_are_bounded(tmp_path: Path):
    for nimg in range(1, 11):
        grid(tmp_path / "samples" / f"{nimg:011d}-raw.png", 64)
    (tmp_path / "samples" / f"{10:011d}-ema-0.100.png").write_bytes(b"no picture")
    whole, remarks = read_grids(LocalPlace(tmp_path))
    assert len(whole) == 10 and remarks == ["1 files in samples/ are no PNG, and left out"]
    each = max(len(grid.png) for grid in whole)
    few, remarks = read_grids(LocalPlace(tmp_path), 4 * each + 20)
    assert len(few) == 4 and few[-1].nimg == 10 and "4 of 10 times are shown" in remarks[0]
    assert read_grids(LocalPlace(tmp_path), 0)[0] == []


def made(run: object, out: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("sys.argv", ["report.py", str(run), "--out", str(out)])
    report.main()
    return capsys.readouterr().out


def test_of_a_run_in_s3(run: Path, bucket_folder: str, capsys, monkeypatch: pytest.MonkeyPatch):
    """The same page but for its address and the times of the files."""
    place = open_place(bucket_folder)
    for path in run.rglob("*"):
        if path.is_file() and path.suffix != ".html":
            place.upload(path.relative_to(run).as_posix(), path)
    said = made(f"{bucket_folder}/", f"{bucket_folder}/page.html", capsys, monkeypatch)
    assert "2 curves, 4 grids, 1 sweeps" in said
    there, here = place.read("page.html").decode(), page(read_contents(str(run)))
    data = re.compile(r'id="drawn">(.*?)</script>', re.DOTALL)
    assert data.findall(there) == data.findall(here) and bucket_folder in there


def test_its_own_page_is_replaced_and_no_other_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "page.html"
    for _ in range(2):
        assert "open it in a browser" in made(run, out, capsys, monkeypatch)
    out.write_text("<p>mine</p>")
    assert "not from this command" in refused_in_process(report, [run, "--out", out], monkeypatch, capsys)
    assert out.read_text() == "<p>mine</p>"
    for arguments, said in (
        ([tmp_path / "none"], "no such folder"),
        ([tmp_path, "--out", tmp_path / "new.html"], "holds no run"),
        ([run, "--out", tmp_path / "page.pdf"], "must end with the kind of file"),
        ([run, "--out", tmp_path / "new.html", "--sweep", tmp_path], "sweep.json"),
    ):
        assert said in refused_in_process(report, [*arguments], monkeypatch, capsys)
    assert not (tmp_path / "new.html").exists()


def test_a_run_that_has_just_begun(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("run_name: new\n")
    text = page(read_contents(str(tmp_path)))
    assert "<h1>new</h1>" in text and 'id="configuration"' in text and 'id="charts"' not in text
    with pytest.raises(ReportError, match="holds no run"):
        read_contents(str(tmp_path / "none"))


def test_a_damaged_sweep_of_the_run_is_a_remark(tmp_path: Path):
    place = LocalPlace(tmp_path)
    place.write("config.yaml", b"run_name: new\n")
    place.write("sweeps/fd/sweep.json", b"?")
    contents = read_contents(str(tmp_path))
    assert contents.sweeps == [] and "is not of a sweep" in contents.remarks["sweeps"][0]
    assert "is not of a sweep" in page(contents)
