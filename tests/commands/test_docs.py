"""Commands and figures of README.md and docs/: each command is run by a test, or marked with what it needs."""

import io
import os
import re
import shlex
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.commands import BIN, ROOT, TINY_RUN, run
from helpers.documented import ALL, MARKS, after_script, commands, matching, placed, sized
from helpers.forks import run_forked
from recipe.benchmarks.sampler_figure import SHOWN, TABLE, digest, draw, read_table
from recipe.configuration.reader import read_config
from recipe.planning.plan import print_plan

RUN_BY = {
    r"\./launch/(quickstart|install)\.sh": "test_quickstart.py::finished",
    r"\./launch/test\.sh": "test_layout.py::test_continuous_integration_runs_the_readmes_test_command",
    r"python recipe/prepare\.py digits .*": "test_as_documented.py::test_object_storage",
    r"python recipe/prepare\.py photos/ .*": "test_as_documented.py::workplace",
    r"python recipe/prepare\.py --inspect .*": "test_as_documented.py::test_data_page",
    r"composer recipe/train\.py \S+ data\.local=data/photos .*": "test_as_documented.py::workplace",
    r"python recipe/bench\.py (data|prepare).*": "test_docs.py::test_bench_of_data",
    r"python recipe/(reconstruct|sample)\.py runs/photos.*": "test_as_documented.py::test_own_pictures",
    r"python recipe/sample\.py SNAPSHOT --(sampler|guidance) .*": "test_sampler_options.py::test_documented_commands",
    r"python recipe/sample\.py --preset .*": "test_presets.py::test_documented_commands",
    r"composer recipe/train\.py yamls/edm2\.yaml": "test_as_documented.py::test_the_embedded_run",
    r"python recipe/(fetch|reconstruct)\.py s3://BUCKET/.*": "test_as_documented.py::test_object_storage",
    r"python recipe/bench\.py snapshots .*": "test_docs.py::test_bench",
    r"RANKS_PER_NODE=2 sbatch --nodes=2 .*launch/run\.sh .*": "test_slurm.py::test_nodes_and_ranks",
    r"launch/run\.sh yamls/edm2\.yaml": "test_ctrl_c.py::test_the_launchers_of_the_project",
    r"launch/array_eval\.sh .*": "test_launch.py::test_samples_by_many_lengths",
    r"composer -n 2 recipe/train\.py .*": "test_as_documented.py::test_the_embedded_run",
    r"torchrun --nproc-per-node=2 recipe/train\.py .*": "test_as_documented.py::test_the_embedded_run",
    r"\./launch/docker_build\.sh.*": "test_image.py::built",
    r"\./launch/docker_run\.sh self-check": "test_image.py::test_examines_itself",
    r"\./launch/docker_run\.sh python recipe/prepare\.py digits .*": "test_image.py::built",
    r"\./launch/docker_run\.sh composer -n 2 .*": "test_image.py::test_trains_without_network_as_any_user",
    r"\./launch/docker_run\.sh python recipe/fetch\.py .*": "test_image.py::test_saves_to_s3_and_fetches",
    r"python recipe/(convert|sample)\.py (edm2-img64-s-|published/).*": "test_convert.py::test_the_page",
    r"python recipe/convert\.py (training-state-|continued/).*": "test_convert.py::test_the_page",
    r"python recipe/(sweep|report)\.py runs/edm2.*": "test_sweep_command.py::test_documented_commands",
    r"python recipe/train\.py .* run_name=noisy .*": "test_sweep_command.py::test_the_documented_example",
    r"PYTHONPATH=tests python recipe/(evaluate|sweep)\.py .*": "test_sweep_command.py::test_the_documented_example",
    r"python recipe/evaluate\.py .*": "test_evaluate.py::test_the_page",
    r"docker (stop|start) .*": "test_image.py::test_stops_and_goes_on",
}
"""What a command looks like: the test, or its fixture, that runs it; on a cluster or in an image, one like it."""

RUN_HERE = r"(python|composer) recipe/(config|train)\.py .*(data\.local=/tmp/x dry_run=true|model\.dropout).*"


def run_by(command: str) -> str | None:
    return next((test for pattern, test in RUN_BY.items() if re.fullmatch(pattern, command)), None)


CHEAP = [command for _, command, marked in ALL if not marked and re.fullmatch(RUN_HERE, command)]


def test_each_command_is_run_or_marked():
    assert len(ALL) > 20 and {name for name, *_ in ALL} >= {"README.md", "cluster.md"}
    left = [entry for entry in ALL if not entry[2] and entry[1] not in CHEAP and run_by(entry[1]) is None]
    assert left == []


@pytest.mark.parametrize(("pattern", "test"), RUN_BY.items())
def test_what_should_run_a_command_exists(pattern: str, test: str):
    assert any(re.fullmatch(pattern, command) for _, command, _ in ALL), "no page has such a command any more"
    name, _, function = test.partition("::")
    holders = [path for path in (ROOT / "tests").rglob(name) if f"\ndef {function}(" in path.read_text()]
    assert len(holders) == 1, holders


AS_THEY_STAND = {command.split()[0]: command for command in reversed(CHEAP)}.values()
"""One for each launcher: it and the shell are what the others share."""


@pytest.mark.parametrize("command", CHEAP)
def test_commands_that_only_look(command: str):
    _, script, *arguments = shlex.split(command)
    if command in AS_THEY_STAND:
        done = run(["bash", "-c", command], env={"PATH": f"{BIN}:{os.environ['PATH']}"}, timeout=120)
    else:
        done = run_forked(ROOT / script, *arguments, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_command_that_nobody_runs_is_found():
    """The check above can fail: on a page with one command too many, and on one whose mark is of another block."""
    page = f"{MARKS[0]}\n\n    sbatch launch/run.sh \\\n      x=1  # why\n\n    composer -n 64 recipe/train.py\n"
    assert commands(page) == [("sbatch launch/run.sh x=1", True), ("composer -n 64 recipe/train.py", False)]
    assert run_by("composer -n 64 recipe/train.py") is None


ROW = re.compile(r"\| (img512-\w+) \| (.+) M \| (.+) GiB \| (.+) \| (.+) \| (.+) \|")
SIZES = ROW.findall((ROOT / "docs" / "cluster.md").read_text())


@pytest.mark.parametrize(
    "size", ["xs", "xxl", *(pytest.param(size, marks=pytest.mark.soak) for size in ("s", "m", "l", "xl"))]
)
def test_sizes(size: str):
    """The table is the planner's output."""
    assert [row[0] for row in SIZES] == [f"img512-{size}" for size in ("xs", "s", "m", "l", "xl", "xxl")]
    options = ["data.local=/tmp/x", "dry_run=true", "world_size=4x8", "gpu=H100-80GB", "fsdp={}"]
    (found,) = (row for row in SIZES if row[0] == f"img512-{size}")
    preset, parameters, memory, traffic, checkpoint, snapshot = found
    out = io.StringIO()
    with redirect_stdout(out):
        print_plan(read_config([str(ROOT / "yamls" / f"{preset}.yaml"), *options]))
    for line in (
        rf"parameters +{parameters} M",
        rf"memory per rank +{memory} GiB",
        rf"traffic +{traffic} sent",
        rf"checkpoints +{checkpoint} each",
        rf"snapshots +{snapshot} each",
        r".* fits microbatches of 64:.*",
    ):
        assert re.search(f"^{line}", out.getvalue(), re.MULTILINE), (preset, line, out.getvalue())


def test_the_figure_of_samplers_is_of_the_table():
    table = read_table((ROOT / "docs" / "sampling.md").read_text())
    assert table["heun"][0] == (5, 2.76, 2.770) and table["restart"] == [(15, 0.73, None), (23, 0.59, None)]
    assert SHOWN.keys() <= table.keys() and len(table) == 10
    quality, distance = draw(table).axes
    curves = {str(line.get_label()): np.asarray(line.get_ydata()).tolist() for line in quality.get_lines()}
    assert curves["unipc"] == [0.88, 0.56, 0.58, 0.61, 0.63]
    assert len([line for line in distance.get_lines() if not str(line.get_label()).startswith("_")]) == 5
    with Image.open(ROOT / "docs" / "samplers.png") as image:
        assert image.info[TABLE] == digest(table), "draw it anew: see docs/sampling.md"


@pytest.mark.slow
def test_bench(digits: Path, tmp_path: Path):
    """The command of docs/performance.md on a smaller network."""
    (command,) = matching(r"python recipe/bench\.py snapshots .*")
    tiny = dict(item.split("=", 1) for item in TINY_RUN) | {"--rate": 20}
    _, words = after_script(command)
    done = run_forked("bench.py", *sized(placed(words, {"DIGITS_8x8": digits}), tiny), timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("what", "lines"), [("data", 7), ("prepare", 6)])
def test_bench_of_data(what: str, lines: int):
    sizes = {"data": {"--images": 2048, "--resolution": 16}, "prepare": {"--images": 16}}
    (command,) = matching(rf"python recipe/bench\.py {what}.*")
    done = run_forked("bench.py", *sized(after_script(command)[1], sizes[what]))
    assert done.returncode == 0, done.stdout + done.stderr
    figures = re.findall(r"^(?:read: |augment: |\d+x\d+ )[^\d\n]*.*\b(\d+(?:\.\d+)?)\b", done.stdout, re.MULTILINE)
    assert len(figures) == lines and all(float(figure) > 0 for figure in figures), done.stdout
