"""First process of the container: runs the command, and passes the container's stop signal to its ranks.

    docker run IMAGE                                            # the image examines itself, as with: self-check
    docker run IMAGE composer recipe/train.py yamls/edm2.yaml   # or any other command

`docker stop` sends SIGTERM to the first process alone. Composer's launcher would hand it on, but kill the ranks after
30 seconds, saved or not; and it dies of SIGUSR1. So the signal goes to the ranks, which finish the batch and save, for
as long as docker waits; the launcher then ends with their exit status, 75, and so does the container. Commands without
ranks get the signal themselves. Ctrl-C is as SIGTERM, and a second one ends all at once: a launcher is put into the
background of the terminal, which would tell it too. Runs without the packages, because it must answer from the first
moment on.
"""

import os
import signal
import sys
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from types import FrameType

LAUNCHERS = {"composer", "torchrun"}
NOT_FOUND, NOT_EXECUTABLE = 127, 126  # exit statuses, as of a shell


def children() -> dict[int, list[int]]:
    """The living processes by their parent."""
    found = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # it has just ended
        if state != "Z":
            found[int(parent)].append(int(path.parent.name))
    return found


def is_rank(pid: int) -> bool:
    """Whether composer or torchrun started it as a rank; so are its data loaders, which inherit the variable."""
    try:
        return b"\0LOCAL_RANK=" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def receivers(command: int) -> list[int]:
    """The ranks below a process, without the data loaders below them; the process itself if there are none."""
    below, found, open_ends = children(), [], [command]
    while open_ends:
        pid = open_ends.pop()
        if is_rank(pid):
            found.append(pid)
        else:
            open_ends += below[pid]
    return found or [command]


def is_launcher(command: list[str]) -> bool:
    return os.path.basename(command[0]) in LAUNCHERS


def start(command: list[str]) -> int:
    """Start the command; the signals that are blocked here are not blocked in it. Exits if it cannot be started."""
    try:
        if is_launcher(command):
            return os.posix_spawnp(command[0], command, os.environ, setsigmask=[], setpgroup=0)
        return os.posix_spawnp(command[0], command, os.environ, setsigmask=[])
    except OSError as error:
        print(
            f"entrypoint.py: {command[0]}: {error.strerror}; give a command to run, for example: "
            "composer recipe/train.py yamls/edm2.yaml",
            file=sys.stderr,
        )
        sys.exit(NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE)


def main() -> None:
    command = sys.argv[1:] or ["self-check"]
    if command[0] == "self-check":
        command = [sys.executable, str(Path(__file__).with_name("self_check.py")), *command[1:]]
    forwarded = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, forwarded)  # until there is somebody to hand them to
    pid = start(command)
    told_by_terminal = os.isatty(0) and not is_launcher(command)  # Ctrl-C, by itself
    pressed = 0

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if number == signal.SIGINT:
            if told_by_terminal:
                return
            pressed += 1
            number = signal.SIGTERM if pressed == 1 else signal.SIGKILL
        for receiver in [*receivers(pid), *([pid] if number == signal.SIGKILL else [])]:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(receiver, number)

    for number in forwarded:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, forwarded)
    while True:
        ended, status = os.wait()  # of orphans too, which come to the first process
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
