"""Runs the project's scripts in processes forked from one that has imported what they need: no 8 seconds of imports.

    done = run_forked(TRAIN, "yamls/edm2.yaml", "duration=8ba", ranks=2)

A script runs as `__main__` with the arguments, environment, exit status and end of the interpreter that a command of
its own would have. Only the imports have happened before. So a test that is about the imports, about variables which
libraries read while they are imported (OMP_NUM_THREADS), or about a launcher starts the real command instead, and each
documented command is started for real by at least one test.
"""

import atexit
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from helpers.commands import ROOT, TRAIN, free_port, train_arguments

SERVER = Path(__file__).with_name("fork_server.py")
_server: subprocess.Popen | None = None


def train(data: Path, folder: Path, *overrides: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    """The tiny run, with later overrides in place of earlier ones."""
    return run_forked(TRAIN, *train_arguments(data, folder, *overrides), ranks=ranks)


def run_forked(
    script: str | Path, *arguments: str | int | Path, ranks: int = 1, env: dict[str, str] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Run a script of recipe/, by name or path, on several ranks, or on one, to its end.

    Returns:
        What rank 0 printed, and the first exit status of any rank that is not 0. `stderr` also holds what the other
        ranks printed.

    Raises:
        subprocess.TimeoutExpired: it was still running after `timeout` seconds, and was killed.
    """
    line = [str(ROOT / "recipe" / script), *map(str, arguments)]
    with tempfile.TemporaryDirectory(prefix="forked-") as folder:
        request = {"line": line, "environment": os.environ | (env or {}), "ranks": ranks, "timeout": timeout,
                   "port": free_port(), "folder": folder}  # fmt: skip
        status = _ask(request)
        printed = {path.name: path.read_text() for path in sorted(Path(folder).iterdir())}
    errors = "".join(printed[name] for name in printed if name != "0.out")
    if status is None:
        raise subprocess.TimeoutExpired(line, timeout, printed["0.out"], errors)
    return subprocess.CompletedProcess(line, status, printed["0.out"], errors)


def _ask(request: dict[str, Any]) -> int | None:
    """The exit status, or None for a timeout."""
    global _server
    if _server is None:
        command = [sys.executable, str(SERVER)]
        _server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        atexit.register(_server.communicate)  # the end of its input is its end
    assert _server.stdin is not None and _server.stdout is not None
    _server.stdin.write(json.dumps(request) + "\n")
    _server.stdin.flush()
    answer = _server.stdout.readline()
    assert answer, "the process that forks the scripts has ended"
    return json.loads(answer)
