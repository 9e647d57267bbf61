"""Ctrl-C under Composer's launcher, which the terminal would tell too.

The launcher would print a traceback and kill its ranks after 30 seconds, saved or not. So a small process of rank 0
stands in the foreground of the terminal in place of the launcher and its ranks, and passes on what comes: the first
Ctrl-C to rank 0, which takes all ranks along; the second as SIGKILL to all ranks; Ctrl-Z to all, as it would have come.
"""

import contextlib
import os
import signal
from pathlib import Path

LOOK_SECONDS = 0.2
KEYS = {signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGHUP}  # what a terminal sends


def launched_by_composer() -> bool:
    """Whether this process is a rank that Composer's launcher has started."""
    if "LOCAL_RANK" not in os.environ:
        return False
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"composer.cli" in words or any(os.path.basename(word) == b"composer" for word in words[:3])


def take_terminal() -> bool:
    """Let Ctrl-C reach this rank and not its launcher; whether that is so now.

    Only the first rank of Composer's launcher does so, and only if both are in the foreground of a terminal. To be
    called before there are threads.
    """
    if os.environ.get("LOCAL_RANK") != "0" or not launched_by_composer():
        return False
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False  # there is none
    rank, launcher, group = os.getpid(), os.getppid(), os.getpgrp()
    try:
        if os.getpgid(launcher) != group or os.tcgetpgrp(terminal) != group:
            return False
        waits, stands = os.pipe()
        if os.fork() == 0:
            try:
                os.close(waits)
                _stand_in(terminal, rank, launcher, group, stands)
            finally:
                os._exit(0)
        os.close(stands)
        os.read(waits, 1)  # nothing: it is closed once the stand-in is in the foreground, or has ended
        os.close(waits)
    finally:
        os.close(terminal)
    return True


def _stand_in(terminal: int, rank: int, launcher: int, group: int, stands: int) -> None:
    """The life of the process in the foreground: as long as the rank's. Closes `stands` when it is there."""
    os.setpgid(0, 0)
    # SIGTTOU comes to a process of the background that sets the foreground.
    signal.pthread_sigmask(signal.SIG_BLOCK, KEYS | {signal.SIGTTOU, signal.SIGTERM, signal.SIGUSR1})
    own, pressed = os.getpgrp(), 0
    with contextlib.suppress(OSError):  # the terminal or the launcher is gone
        os.tcsetpgrp(terminal, own)
        os.close(stands)
        while os.getppid() == rank:
            if os.tcgetpgrp(terminal) == group:  # the shell has brought the job back
                os.tcsetpgrp(terminal, own)
            found = signal.sigtimedwait(KEYS, LOOK_SECONDS)
            if found is None:
                continue
            if found.si_signo != signal.SIGINT:
                os.killpg(group, found.si_signo)
                continue
            pressed += 1
            for process in [rank] if pressed == 1 else _children(launcher):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGINT if pressed == 1 else signal.SIGKILL)
        if os.tcgetpgrp(terminal) == own:
            os.tcsetpgrp(terminal, group)


def _children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(path.parent.name))
    return found
