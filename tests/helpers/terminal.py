"""Runs a command in a terminal of its own, where Ctrl-C goes to all processes of the foreground, as a user's does."""

import os
import pty
import select
import signal
import time
from collections.abc import Sequence

from helpers.commands import ROOT

CTRL_C = b"\x03"


class Terminal:
    """A command whose input and output are a terminal; as a context it and its session are killed at its end."""

    def __init__(self, line: Sequence[str], env: dict[str, str] | None = None):
        self.pid, self.descriptor = pty.fork()  # a session of its own, which the terminal controls
        if self.pid == 0:
            try:
                os.chdir(ROOT)
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                os.execvpe(line[0], list(line), os.environ | (env or {}))
            finally:
                os._exit(127)
        self.shown = ""
        self.status: int | None = None

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.descriptor)  # hangs up: the session gets SIGHUP
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def press(self, keys: bytes) -> None:
        os.write(self.descriptor, keys)

    def wait_for(self, text: str, seconds: float = 120, after: int = 0) -> None:
        """Until `text` is shown, behind the first `after` letters."""
        deadline = time.monotonic() + seconds
        while text not in self.shown[after:]:
            assert self._read(deadline), f"{text!r} does not come: {self.shown[-3000:]}"

    def wait(self, seconds: float = 120) -> int:
        """The exit status, once the command has ended; all that it showed is in `shown`."""
        deadline = time.monotonic() + seconds
        while self.status is None:
            self._read(time.monotonic() + 0.1)
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.status = os.waitstatus_to_exitcode(status)
            assert time.monotonic() < deadline, f"does not end: {self.shown[-3000:]}"
        while self._read(time.monotonic() + 0.2):
            pass
        return self.status

    def _read(self, deadline: float) -> bool:
        """Whether something came before the deadline."""
        if not select.select([self.descriptor], [], [], max(deadline - time.monotonic(), 0))[0]:
            return False
        try:
            data = os.read(self.descriptor, 65536)
        except OSError:  # nobody has the terminal open any more
            return False
        self.shown += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)
