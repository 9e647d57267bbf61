"""How many processors this process may use: those it may run on, and no more than a container's limit allows.

A container with a limit (docker run --cpus, a pod's limits.cpu) still sees all processors of its machine. A thread on
each would use up the limit early in each period of 100 ms, and all would stand still for the rest of it.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")


def processors(root: Path = ROOT) -> int:
    """Processors that this process may use at once, at least 1; a limit of 1.5 counts as 2.

    Args:
        root: below which /proc and /sys are looked for.
    """
    return max(1, min([len(os.sched_getaffinity(0)), *(math.ceil(limit) for limit in _limits(root))]))


def _limits(root: Path) -> Iterator[float]:
    """The limits, in processors, of this process's control group and of those above it; of cgroup v2 and v1."""
    with contextlib.suppress(OSError):  # no Linux
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            number, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if number == "0":
                mounts = ["", "unified"]
            elif "cpu" in controllers.split(","):
                mounts = ["cpu", controllers]
            else:
                continue
            for mount in mounts:
                for folder in _upwards(root / "sys/fs/cgroup" / mount, path):
                    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
                        yield _limit_of(folder)


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """A group and those above it. In a container the path may be one outside; then its mount is all that is found."""
    parts = PurePosixPath(path.lstrip("/")).parts
    for count in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:count])


def _limit_of(folder: Path) -> float:
    """A group's quota over its period. Raises OSError or ValueError if it has none."""
    both = folder / "cpu.max"
    if both.exists():
        quota, period = both.read_text().split()  # "max 100000" has no number as its quota
    else:
        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    limit = int(quota) / int(period)
    if limit <= 0:  # -1: none
        raise ValueError(f"{folder}: no limit")
    return limit
