"""Ctrl-C in a terminal: one line, no traceback, nothing half-written; a run saves first, a second one is at once."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.commands import BIN, command_line, composer, launch, train_arguments
from helpers.terminal import CTRL_C, Terminal

ENDLESS = (
    "duration=100000ba",
    "checkpoints.interval=100000ba",
    "ema.snapshot_interval=100000ba",
    "logging.interval=1ba",
)
TRAINS = "Train loss/train/total"
INTERRUPTED = 130


def script(folder: Path, text: str, name: str = "script.py") -> list[str]:
    path = folder / name
    path.write_text(text)
    return [sys.executable, str(path)]


def checkpoints(folder: Path) -> int:
    return len(list(folder.glob("checkpoints/*")))


# In short sleeps: a signal that comes just before Python begins one is noticed at its end.
IMPORTS = """
import sys, time
from recipe.interrupts import end_at_once
end_at_once("script.py")
print("importing", flush=True)
try:
    [time.sleep(0.1) for _ in range(600)]
except BaseException:
    raise ImportError("what a library makes of it")
"""
WORKS = """
import sys, time
from recipe.interrupts import interruptible
with interruptible("script.py", "go on"):
    try:
        print("working", flush=True)
        [time.sleep(0.1) for _ in range(600)]
    except BaseException:
        print("taken back", flush=True)
        raise RuntimeError("what a library makes of it") from None
"""
HANGS = """
import time
from recipe.interrupts import interruptible
with interruptible("script.py", "go on"):
    try:
        print("working", flush=True)
        [time.sleep(0.1) for _ in range(600)]
    finally:
        print("hanging", flush=True)
        [time.sleep(0.1) for _ in range(600)]
"""


@pytest.mark.parametrize(
    ("text", "ready", "said"),
    [(IMPORTS, "importing", "interrupted; nothing was done yet"), (WORKS, "working", "interrupted; go on")],
)
def test_one_line(text: str, ready: str, said: str, tmp_path: Path):
    with Terminal(script(tmp_path, text)) as terminal:
        terminal.wait_for(ready)
        terminal.press(CTRL_C)
        assert terminal.wait(20) == INTERRUPTED
        assert f"\nscript.py: {said}\n" in terminal.shown and "Traceback" not in terminal.shown
        assert ("taken back" in terminal.shown) == (ready == "working")


def test_a_second_one_is_at_once(tmp_path: Path):
    with Terminal(script(tmp_path, HANGS)) as terminal:
        terminal.wait_for("working")
        terminal.press(CTRL_C)
        terminal.wait_for("hanging")
        terminal.press(CTRL_C)
        assert terminal.wait(10) == -2
        assert "Traceback" not in terminal.shown


def test_output_that_nobody_reads(tmp_path: Path):
    """As after Ctrl-C has ended `tee`."""
    text = (
        "import sys, time\nfrom recipe.interrupts import outlive_readers\noutlive_readers()\n"
        "for n in range(3):\n    print(n)\n    print(n, file=sys.stderr)\n    time.sleep(0.2)\n"
        f"open({str(tmp_path / 'saved')!r}, 'w').close()\n"
    )
    process = subprocess.Popen(script(tmp_path, text), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None and process.stdout.readline() == b"0\n"
    process.stdout.close()
    assert process.wait(20) == 0 and (tmp_path / "saved").exists()


# What Composer's launcher does, by its name: it waits for its ranks, and Ctrl-C ends in a traceback.
LAUNCHER = """
import os, subprocess, sys
ranks = [subprocess.Popen([sys.executable, sys.argv[1]], env=os.environ | {"LOCAL_RANK": str(n)}) for n in range(2)]
sys.exit(max(rank.wait() for rank in ranks))
"""
# Each line is one write: `print` of several things is several, and the other rank's may come between.
RANK = """
import os, signal, sys, time
from recipe.terminal import take_terminal
taken = take_terminal()
def say(text):
    os.write(1, f"rank {os.environ['LOCAL_RANK']} {text}\\n".encode())
def stop(number, frame):
    say("saves")
    time.sleep(float(os.environ.get("SAVING", "0")))
    sys.exit(75)
signal.signal(signal.SIGINT, stop)
say(f"took the terminal: {taken}")
time.sleep(3 if os.environ["LOCAL_RANK"] == "1" else 60)
"""


def started(folder: Path, **env: str) -> Terminal:
    (folder / "rank.py").write_text(RANK)
    terminal = Terminal([*script(folder, LAUNCHER, "composer"), str(folder / "rank.py")], env)
    terminal.wait_for("rank 0 took the terminal: True")
    terminal.wait_for("rank 1 took the terminal: False")
    return terminal


def test_the_launcher_does_not_hear_it(tmp_path: Path):
    with started(tmp_path) as terminal:
        terminal.press(CTRL_C)
        assert terminal.wait(20) == 75
        assert "rank 0 saves" in terminal.shown and "rank 1 saves" not in terminal.shown
        assert "Traceback" not in terminal.shown


def test_the_second_one_kills_all_ranks(tmp_path: Path):
    with started(tmp_path, SAVING="60") as terminal:
        terminal.press(CTRL_C)
        terminal.wait_for("rank 0 saves")
        terminal.press(CTRL_C)
        assert terminal.wait(10) not in (0, 75)


def test_ctrl_z_stops_the_job_and_fg_goes_on(tmp_path: Path):
    """Under a shell, which has the terminal while the job is stopped."""
    (tmp_path / "rank.py").write_text(RANK)
    line = " ".join([*script(tmp_path, LAUNCHER, "composer"), str(tmp_path / "rank.py")])
    with Terminal(["bash", "--norc", "-i"], {"PS1": "ready> "}) as terminal:
        terminal.wait_for("ready> ")
        terminal.press(f"{line}\n".encode())
        terminal.wait_for("rank 0 took the terminal: True")
        terminal.press(b"\x1a")
        terminal.wait_for("Stopped")
        already = len(terminal.shown)
        terminal.press(b"echo in the $((40 + 2))nd shell\n")
        terminal.wait_for("in the 42nd shell", after=already)
        terminal.press(b"fg\n")
        terminal.wait_for("composer", after=already + 40)
        time.sleep(1)  # until it has the terminal again
        terminal.press(CTRL_C)
        terminal.wait_for("rank 0 saves")
        terminal.wait_for("ready> ", after=terminal.shown.rindex("rank 0 saves"))
        terminal.press(b"echo status $?; exit\n")
        terminal.wait_for("status 75")
        assert "Traceback" not in terminal.shown


@pytest.mark.slow
@pytest.mark.parametrize("how", ["python", "torchrun", pytest.param("composer", marks=pytest.mark.soak)])
def test_a_run_saves(how: str, digits: Path, tmp_path: Path):
    arguments = train_arguments(digits, tmp_path / "run", *ENDLESS)
    line = {"python": launch(1, *arguments), "composer": composer(2, *arguments), "torchrun": launch(2, *arguments)}[
        how
    ]
    with Terminal(line) as terminal:
        terminal.wait_for(TRAINS)
        terminal.press(CTRL_C)
        status = terminal.wait()
        assert "train.py: finishing the batch and saving" in terminal.shown
        assert "the same command goes on from there" in terminal.shown
        assert checkpoints(tmp_path / "run") == 1
        assert status == (1 if how == "torchrun" else 75)  # torchrun ends with a traceback of its own
        assert ("for which the launcher waits 30 seconds" in terminal.shown) == (how == "torchrun")
        if how != "torchrun":
            assert "Traceback" not in terminal.shown


@pytest.mark.slow
def test_the_launchers_of_the_project(digits: Path, tmp_path: Path):
    """launch/run.sh, with its logs elsewhere: Composer's launcher and two ranks."""
    root = Path(__file__).parents[2]
    line = [str(root / "launch" / "run.sh"), *train_arguments(digits, tmp_path / "run", *ENDLESS)]
    with Terminal(
        line, {"VENV": str(BIN.parent), "LOG_FOLDER": str(tmp_path / "logs"), "RANKS_PER_NODE": "2"}
    ) as terminal:
        terminal.wait_for(TRAINS)
        terminal.press(CTRL_C)
        assert terminal.wait() == 75
        assert "the same command goes on from there" in terminal.shown and "Traceback" not in terminal.shown
        assert checkpoints(tmp_path / "run") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train.py", "prepare.py", "sample.py"])
def test_commands_that_are_only_starting(name: str):
    with Terminal([*command_line(name), "--help"]) as terminal:
        terminal.press(CTRL_C)
        status = terminal.wait()
        assert "Traceback" not in terminal.shown and status in (INTERRUPTED, -2, 0)


@pytest.mark.slow
def test_a_preparation_goes_on(tmp_path: Path):
    line = command_line("prepare.py", "digits", "--out", tmp_path / "out", "--resolution", 1024)
    line += ["--workers", "2", "--shard-size", "1mb"]
    with Terminal(line) as terminal:
        deadline = time.monotonic() + 60
        while not list(tmp_path.rglob("*.mds*")):
            assert time.monotonic() < deadline and terminal.status is None
            time.sleep(0.05)
        terminal.press(CTRL_C)
        assert terminal.wait() == INTERRUPTED
        assert "prepare.py: interrupted; the same command goes on" in terminal.shown
        assert "Traceback" not in terminal.shown and not (tmp_path / "out" / "index.json").exists()
