"""Runs the project's scripts in processes forked from one that has imported what they need: no 8 seconds of imports.

    done = run_forked(TRAIN, "yamls/edm2.yaml", "duration=8ba", ranks=2)

A script runs as `__main__` with the arguments, environment, exit status and end of the interpreter that a command of
its own would have. Only the imports have happened before. So a test that is about the imports, about variables which
libraries read while they are imported (OMP_NUM_THREADS), or about a launcher starts the real command instead, and each
documented command is started for real by at least one test.
"""

import atexit
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from helpers.commands import ROOT, TRAIN, free_port, train_arguments

SERVER = Path(__file__).with_name("fork_server.py")
_server: subprocess.Popen | None = None


def train(data: Path, folder: Path, *overrides: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    """The tiny run, with later overrides in place of earlier ones."""
    return run_forked(TRAIN, *train_arguments(data, folder, *overrides), ranks=ranks)


class Forked:
    """A script that runs on several ranks, or on one; as a context it is killed at its end. One at a time.

    Args:
        script: of recipe/, by name, or any, by path.
        timeout: seconds after which it is killed.
    """

    def __init__(
        self,
        script: str | Path,
        *arguments: str | int | Path,
        ranks: int = 1,
        env: dict[str, str] | None = None,
        timeout: float = 300,
    ):
        self.line = [str(ROOT / "recipe" / script), *map(str, arguments)]
        self.folder = Path(tempfile.mkdtemp(prefix="forked-"))
        self.size, self.timeout = ranks, timeout
        request = {
            "line": self.line,
            "environment": os.environ | (env or {}),
            "ranks": ranks,
            "timeout": timeout,
            "port": free_port(),
            "folder": str(self.folder),
        }
        self._status = ThreadPoolExecutor(1).submit(_ask, _running_server(), request)

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        shutil.rmtree(self.folder)

    def ranks(self) -> list[int]:
        """Process ids by rank, once all are started."""
        paths = [self.folder / f"{rank}.pid" for rank in range(self.size)]
        deadline = time.monotonic() + self.timeout
        while not all(path.exists() and path.read_text() for path in paths):
            assert time.monotonic() < deadline, f"not all of {self.size} ranks start: {self.line}"
            time.sleep(0.01)
        return [int(path.read_text()) for path in paths]

    def poll(self) -> int | None:
        """None while it runs, then the first exit status of any rank that is not 0, or 0."""
        return self.wait(0) if self._status.done() else None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for this status. Raises TimeoutExpired, as of the limit given at the start."""
        status = self._status.result(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(self.line, self.timeout, self.output(), self.errors())
        return status

    def kill(self) -> None:
        """Kill -9 all ranks that are left."""
        if not self._status.done():
            for pid in self.ranks():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._status.result(60)

    def output(self) -> str:
        """What rank 0 printed."""
        return (self.folder / "0.out").read_text()

    def errors(self) -> str:
        """What rank 0 printed as errors, and all that the other ranks printed."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("*.err")))


def run_forked(
    script: str | Path,
    *arguments: str | int | Path,
    ranks: int = 1,
    env: dict[str, str] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run a script to its end, with the arguments of `Forked`."""
    with Forked(script, *arguments, ranks=ranks, env=env, timeout=timeout) as process:
        status = process.wait()
        return subprocess.CompletedProcess(process.line, status, process.output(), process.errors())


def _running_server() -> subprocess.Popen:
    """The server, started by the thread that lasts: it is killed when the thread that started it ends."""
    global _server
    if _server is None:
        command = [sys.executable, str(SERVER)]
        _server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        atexit.register(_server.communicate)  # the end of its input is its end
    return _server


def _ask(server: subprocess.Popen, request: dict[str, Any]) -> int | None:
    """The exit status, or None for a timeout."""
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    assert answer, "the process that forks the scripts has ended"
    return json.loads(answer)
