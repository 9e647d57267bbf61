"""Commands and figures of README.md and docs/: each command is run by a test, or marked with what it needs."""

import io
import os
import re
import shlex
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from helpers.commands import BIN, ROOT, TINY_RUN, command_line, run
from helpers.forks import run_forked
from recipe.configuration.reader import read_config
from recipe.planning.plan import print_plan

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARKS = ("<!-- needs a GPU cluster -->", "<!-- needs data from the network -->")

RUN_BY = {
    r"\./launch/(quickstart|install)\.sh": "test_quickstart.py::finished",
    r"\./launch/test\.sh": "test_layout.py::test_continuous_integration_runs_the_readmes_test_command",
    r"python recipe/prepare\.py digits .*": "test_quickstart.py::finished",
    r"python recipe/prepare\.py (photos/ .*|--inspect .*)": "test_prepare.py::test_a_messy_folder_to_training",
    r"composer recipe/train\.py \S+ data\.local=data/photos .*": "test_prepare.py::test_a_messy_folder_to_training",
    r"python recipe/bench\.py (data|prepare).*": "test_docs.py::test_bench_of_data",
    r"python recipe/(reconstruct|sample)\.py runs/photos.*": "test_quickstart.py::finished",
    r"composer recipe/train\.py yamls/edm2\.yaml": "test_quickstart.py::finished",
    r"python recipe/fetch\.py s3://BUCKET/.*": "test_fetch.py::test_list",
    r"python recipe/reconstruct\.py s3://BUCKET/.*": "test_fetch.py::test_commands_take_addresses",
    r"python recipe/bench\.py snapshots .*": "test_docs.py::test_bench",
    r"RANKS_PER_NODE=2 sbatch --nodes=2 .*launch/run\.sh .*": "test_slurm.py::test_nodes_and_ranks",
    r"launch/run\.sh yamls/edm2\.yaml": "test_slurm.py::test_like_one_process",
    r"launch/array_eval\.sh .*": "test_launch.py::test_samples_by_many_lengths",
    r"composer -n 2 recipe/train\.py .*": "conftest.py::two_ranks",
    r"torchrun --nproc-per-node=2 recipe/train\.py .*": "test_launch.py::test_torchrun_and_composer_by_hand",
    r"\./launch/docker_build\.sh.*": "test_image.py::built",
    r"\./launch/docker_run\.sh self-check": "test_image.py::test_examines_itself",
    r"\./launch/docker_run\.sh python recipe/prepare\.py digits .*": "test_image.py::built",
    r"\./launch/docker_run\.sh composer -n 2 .*": "test_image.py::test_trains_without_network_as_any_user",
    r"\./launch/docker_run\.sh python recipe/fetch\.py .*": "test_image.py::test_saves_to_s3_and_fetches",
    r"docker (stop|start) .*": "test_image.py::test_stops_and_goes_on",
}
"""What a command looks like: the test, or its fixture, that runs one like it."""

RUN_HERE = r"(python recipe/config\.py|(python|composer) recipe/train\.py) .*(dry_run=true|model\.dropout).*"


def commands(text: str) -> list[tuple[str, bool]]:
    """The commands in a page's code blocks, on one line and without comments, and whether they are marked."""
    found, mark = [], False
    for paragraph in text.split("\n\n"):
        lines = paragraph.strip("\n").split("\n")
        if all(line.startswith("    ") for line in lines):
            joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
            found += [(re.sub(r"\s+#.*", "", line).strip(), mark) for line in joined.split("\n")]
        mark = lines[-1] in MARKS
    return found


def run_by(command: str) -> str | None:
    return next((test for pattern, test in RUN_BY.items() if re.fullmatch(pattern, command)), None)


ALL = [(page.name, command, marked) for page in PAGES for command, marked in commands(page.read_text())]
CHEAP = [command for _, command, marked in ALL if not marked and re.fullmatch(RUN_HERE, command)]
RUNS = [command for _, command, _ in ALL if re.search(r"\b(recipe/train\.py|launch/run\.sh) ", command)]
"""Commands that start a run, those too that no test can run."""


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


AS_THEY_STAND = {command.split()[0]: command for command in CHEAP}.values()
"""One for each launcher: it and the shell are what the others share."""


@pytest.mark.parametrize("command", CHEAP)
def test_commands_that_only_look(command: str):
    _, script, *arguments = shlex.split(command)
    if command in AS_THEY_STAND:
        done = run(["bash", "-c", command], env={"PATH": f"{BIN}:{os.environ['PATH']}"}, timeout=120)
    else:
        done = run_forked(ROOT / script, *arguments, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", RUNS)
def test_runs_have_a_configuration_without_mistakes(command: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TMPDIR", "/tmp")  # which one of them refers to
    words = shlex.split(command)
    script = next(index for index, word in enumerate(words) if word.endswith(("recipe/train.py", "launch/run.sh")))
    read_config(words[script + 1 :])


def test_a_command_that_nobody_runs_is_found():
    """The check above can fail: on a page with one command too many, and on one whose mark is of another block."""
    page = f"{MARKS[0]}\n\n    sbatch launch/run.sh \\\n      x=1  # why\n\n    composer -n 64 recipe/train.py\n"
    assert commands(page) == [("sbatch launch/run.sh x=1", True), ("composer -n 64 recipe/train.py", False)]
    assert run_by("composer -n 64 recipe/train.py") is None


ROW = re.compile(r"\| (img512-\w+) \| (.+) M \| (.+) GiB \| (.+) \| (.+) \| (.+) \|")
SIZES = ROW.findall((ROOT / "docs" / "cluster.md").read_text())


def test_sizes():
    """The table is the planner's output."""
    assert [row[0] for row in SIZES] == [f"img512-{size}" for size in ("xs", "s", "m", "l", "xl", "xxl")]
    options = ["data.local=/tmp/x", "dry_run=true", "world_size=4x8", "gpu=H100-80GB", "fsdp={}"]
    for preset, parameters, memory, traffic, checkpoint, snapshot in SIZES:
        out = io.StringIO()
        with redirect_stdout(out):
            print_plan(read_config([str(ROOT / "yamls" / f"{preset}.yaml"), *options]))
        for line in (
            rf"parameters +{parameters} M", rf"memory per rank +{memory} GiB", rf"traffic +{traffic} sent",
            rf"checkpoints +{checkpoint} each", rf"snapshots +{snapshot} each", r".* fits microbatches of 64:.*",
        ):  # fmt: skip
            assert re.search(f"^{line}", out.getvalue(), re.MULTILINE), (preset, line, out.getvalue())


@pytest.mark.alone
@pytest.mark.slow
def test_bench(digits: Path, tmp_path: Path):
    """The command of docs/performance.md on a smaller network."""
    config = [str(ROOT / "yamls" / "edm2.yaml"), *TINY_RUN, f"data.local={digits}"]
    done = run(command_line("bench.py", "snapshots", *config, "--rate", "20"), timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("what", "lines"), [("data", 7), ("prepare", 6)])
def test_bench_of_data(what: str, lines: int):
    done = run(command_line("bench.py", what, "--images", "2048" if what == "data" else "64", "--resolution", "16"))
    assert done.returncode == 0, done.stdout + done.stderr
    figures = re.findall(r"^(?:read: |augment: |\d+x\d+ )[^\d\n]*.*\b(\d+(?:\.\d+)?)\b", done.stdout, re.MULTILINE)
    assert len(figures) == lines and all(float(figure) > 0 for figure in figures), done.stdout
