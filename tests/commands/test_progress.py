"""What a long task says of itself: on a terminal, and in a log file."""

import fcntl
import os
import re
import struct
import termios
import time
from pathlib import Path

import pytest

from recipe import prepare, progress

LINE = re.compile(r"sample: \d+/20, [ \d.?]+(image/s|s/image), [\d:?]+ left")


def work(seconds: float, **options: bool) -> None:
    with progress.progress(20, "sample", "image", **options) as bar:
        for _ in range(20):
            time.sleep(seconds)
            bar.update()


def test_a_log_gets_a_line_at_a_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.05)
    began = time.monotonic()
    work(0.02)
    most = (time.monotonic() - began) / 0.05 + 1  # the last comes at the end, whenever that is
    lines = capsys.readouterr().err.split("\n")
    assert lines.pop() == "" and 3 <= len(lines) <= most
    assert all(LINE.fullmatch(line) for line in lines), lines  # no carriage return, no spaces behind
    assert lines[-1].startswith("sample: 20/20, ") and lines[-1].endswith(" 00:00 left")


def test_bars_below_one_another_are_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.02)
    with progress.progress(2, "sweep", "point", leave=False) as bar:
        for _ in range(2):
            work(0.005)
            bar.update()
    found = capsys.readouterr().err
    assert "\r" not in found and "\x1b" not in found
    assert {line.split(":")[0] for line in found.splitlines()} == {"sample", "sweep"}


@pytest.mark.parametrize(("seconds", "shown"), [(60.0, True), (0.01, False)])
def test_a_short_task_and_other_ranks_say_nothing(
    seconds: float, shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(progress, "LOG_SECONDS", seconds)
    work(0.005, shown=shown)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch):
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    with open(theirs, "w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        work(0.01)
        shown = ""
        while "\n" not in shown:  # what was written arrives in pieces
            shown += os.read(ours, 10_000).decode()
    os.close(ours)
    assert "\r" in shown and "100%|" in shown and "20/20" in shown


def test_a_command_in_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.01)
    out = str(tmp_path / "out")
    monkeypatch.setattr("sys.argv", ["prepare.py", "digits", "--out", out, "--resolution", "8", "--workers", "1"])
    prepare.main()
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(line.startswith("prepare: ") for line in lines), lines
    assert lines[-1].startswith("prepare: 5000/5000, ")
