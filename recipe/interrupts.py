"""Ctrl-C: how a command ends over it, in one line and without a traceback. Imports nothing that takes time."""

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

from recipe.command_line import rank
from recipe.terminal import launched_by_composer, take_terminal

INTERRUPTED = 130  # exit status, as a shell's for what Ctrl-C ended
launcher_waits = False  # whether a launcher hears Ctrl-C too, and kills its ranks after 30 seconds


def end_at_once(command: str) -> None:
    """From now on Ctrl-C ends this process at once, with one line: while it only imports, nothing is half-done.

    An exception would come out of whatever is being imported, and some libraries turn it into an error of their own.
    """
    global launcher_waits
    signal.signal(signal.SIGINT, lambda number, frame: _end(command, "interrupted; nothing was done yet"))
    launcher_waits = "MASTER_PORT" in os.environ and not take_terminal()


@contextlib.contextmanager
def interruptible(command: str, advice: str) -> Iterator[None]:
    """Within, the first Ctrl-C takes back what is half-done, says one line and ends with status 130; a second one is
    at once.

    Args:
        command: name of the script.
        advice: what to say after "interrupted; ".
    """
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # works even where Python's handlers do not run
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except BaseException:  # a library may have made another error of it
        if not interrupted:
            raise
        _end(command, f"interrupted; {advice}")


def write_line(text: str) -> None:
    """Print to the terminal, also from a signal handler, where `print` may find itself interrupted."""
    start = "\n" if sys.__stderr__ is not None and os.isatty(2) else ""  # the terminal has just shown ^C
    with contextlib.suppress(OSError):  # whoever read it may be gone
        os.write(2, f"{start}{text}\n".encode())


class _Lasting(io.FileIO):
    """A descriptor that takes whatever is written, also when nobody reads it any more."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            return memoryview(data).nbytes


def outlive_readers() -> None:
    """Let this process go on when the reader of what it prints has gone.

    Ctrl-C also ends the `tee` in `train.py ... | tee log`, and a terminal may be closed; a run must save all the same.
    """
    for name, descriptor in ("stdout", 1), ("stderr", 2):
        stream = getattr(sys, name)
        with contextlib.suppress(OSError, AttributeError):  # closed, or replaced by something without a descriptor
            if stream.fileno() == descriptor:
                stream.flush()
                raw = io.BufferedWriter(_Lasting(descriptor, "w", closefd=False))
                lasting = io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=True)
                setattr(sys, name, lasting)


def leave_quietly(status: int) -> NoReturn:
    """End with a status. Composer's launcher shows all that a rank but its first has printed if it is not 0.

    It does not for a rank that SIGTERM ended; its own status is that of its first rank all the same.
    """
    if status != 0 and os.environ.get("LOCAL_RANK", "0") != "0" and launched_by_composer():
        sys.stdout.flush()
        sys.stderr.flush()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    sys.exit(status)


def _end(command: str, text: str) -> NoReturn:
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        sys.stdout.flush()
    if rank() == 0:
        write_line(f"{command}: {text}")
    # Not by sys.exit: threads of libraries would be waited for.
    os._exit(INTERRUPTED)
