"""The comments of yamls/edm2.yaml come from the schema: the file is its rendering, and shows every key."""

import re
from pathlib import Path

import yaml

from helpers.commands import ROOT, command_line, run
from recipe.configuration.inputs import Augment
from recipe.configuration.keys import FREE, Section, all_keys, key
from recipe.configuration.outputs import MLflow, WandB
from recipe.configuration.reader import read_config
from recipe.configuration.schema import FSDP, Config
from recipe.configuration.template import WIDTH, render

EDM2 = ROOT / "yamls" / "edm2.yaml"


class Inner(Section):
    """A section for the tests below."""

    depth: float = key(..., FREE, "how deep", 2.0)
    place: str | None = key(None, FREE, "where", "here")


class Small(Section):
    """A schema for the tests below."""

    name: str = key(..., FREE, "what it is called", "x")
    count: int = key(3, FREE, "how many")
    parts: list[Inner] | None = key(None, FREE, "its parts", [{"depth": 1.0}])
    inner: Inner | None = key(None, FREE, "a section that may be off", {"depth": 1.0})
    outer: Inner = key(Inner(depth=1.0), None, "a section that is always there", {"depth": 1.0})


def test_edm2_is_its_rendering():
    """To the letter. After a change of the schema: python -m recipe.configuration.template yamls/edm2.yaml --write"""
    assert EDM2.read_text() == render(EDM2.read_text())


def test_every_key_is_in_edm2():
    """Also those of sections that are off: once their lines are no comments they are valid, with all their defaults."""
    text = re.sub(r"(?m)^( {1,8})# ( *(- )?\w+: )", r"\1\2", EDM2.read_text())  # "  # p: 0.12" -> "  p: 0.12"
    for section in ("init", "augment", "fsdp", "streams", "metrics", "wandb", "mlflow"):
        text = re.sub(rf"(?m)^( *){section}: null", rf"\1{section}:    ", text)
    tree = yaml.safe_load(text)
    assert set(names_in(tree)) == {name for name, _ in all_keys(Config)}
    config = Config.model_validate(tree)
    assert (config.augment, config.fsdp) == (Augment(), FSDP())
    assert (config.logging.wandb, config.logging.mlflow) == (WandB(), MLflow())


def names_in(tree: dict, prefix: str = "") -> list[str]:
    names = []
    for name, value in tree.items():
        inner = value[0] if isinstance(value, list) and value else value
        names += [prefix + name] + (names_in(inner, f"{prefix}{name}.") if isinstance(inner, dict) else [])
    return names


def test_lines_fit():
    assert max(len(line) for line in EDM2.read_text().splitlines()) <= WIDTH


def test_rendering():
    """Values stay as they are written, comments are made anew, missing keys get their default, the header stays."""
    text = "# A header,\n# of two lines.\n\nname: 'a'   # an old comment\ncount: 0x10\nouter: {depth: 1.50}\n"
    assert [re.sub(" +#", " #", line) for line in render(text, Small).splitlines()] == [
        "# A header,",
        "# of two lines.",
        "",
        "name: 'a' # what it is called",
        "count: 0x10 # how many; default: 3",
        "",
        "parts: null # its parts",
        " # - depth: 2.0 # how deep",
        " #   place: null # where; e.g. here",
        "",
        "inner: null # a section that may be off",
        " # depth: 2.0 # how deep",
        " # place: null # where; e.g. here",
        "",
        "outer: # a section that is always there",
        "  depth: 1.50 # how deep",
        "  place: null # where; e.g. here",
    ]


def test_a_section_that_is_on_and_a_long_list():
    text = "name: a\ninner:\n  depth: 7\nparts:\n- depth: 1\n- depth: 2\n"
    rendered = render(text, Small)
    assert yaml.safe_load(rendered) == {
        "name": "a",
        "count": 3,
        "parts": [{"depth": 1}, {"depth": 2}],
        "inner": {"depth": 7, "place": None},
        "outer": {"depth": "???", "place": None},
    }
    assert render(rendered, Small) == rendered


def test_long_comments_go_on_below():
    class Long(Section):
        """A key with much to say."""

        name: str = key(..., FREE, "word " * 40 + "end = 1", "x")

    lines = render("name: a\n", Long).splitlines()
    assert len(lines) == 3 and max(map(len, lines)) <= WIDTH
    assert all(line.startswith(" " * 40 + "#   ") for line in lines[1:])


def test_command(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text(EDM2.read_text().replace("# mean of ln sigma", "# something else").replace("seed: 0", "seed: 5"))
    before = path.read_text()
    module = [command_line("config.py")[0], "-m", "recipe.configuration.template"]
    done = run([*module, str(path)])
    assert (done.returncode, done.stderr) == (0, "")
    assert "# something else" not in done.stdout and "seed: 5" in done.stdout
    assert path.read_text() == before
    assert run([*module, str(path), "--write"]).returncode == 0
    assert path.read_text() == done.stdout
    assert read_config([str(path)]) == read_config([str(EDM2), "seed=5"])
    path.write_text(before + "lots: 1\n")  # would be lost
    done = run([*module, str(path), "--write"])
    assert done.returncode == 2 and "lots = 1: is not a key of the configuration" in done.stderr
    assert "lots: 1" in path.read_text()
