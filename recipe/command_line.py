"""The command line: lists as users write them, and how a command ends over bad input."""

import math
import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn, TextIO


def parse_integers(text: str) -> list[int]:
    """Integers from `0-39,50`: single ones and inclusive ranges. Raises ValueError with the rule."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"{text!r} is not a list of whole numbers and ranges such as 0-39,50")
        start, end = int(first), int(last or first)
        if end < start:
            raise ValueError(f"{part.strip()!r} is a range that falls; write {end}-{start}")
        if end >= 2**63:
            raise ValueError(f"{part.strip()!r} goes beyond 2^63 - 1")
        numbers += range(start, end + 1)
    return numbers


def parse_numbers(text: str) -> list[float]:
    """Numbers from `0.05,0.10:0.20:0.05`: single ones and inclusive ranges start:end:step. Raises ValueError."""
    numbers: list[float] = []
    for part in text.split(","):
        try:
            values = [float(value) for value in part.split(":")]
        except ValueError:
            values = []
        if len(values) == 1:
            numbers += values
        elif len(values) == 3 and values[2] > 0 and values[0] <= values[1] < math.inf:
            start, end, step = values
            numbers += [round(start + index * step, 9) for index in range(int((end - start) / step + 1e-6) + 1)]
        else:
            raise ValueError(f"{text!r} is not a list of numbers and ranges start:end:step such as 0.05,0.10:0.20:0.05")
    return numbers


def unique(values: Sequence[float]) -> list[float]:
    """The values without repeats, in order."""
    return list(dict.fromkeys(values))


USAGE_ERROR = 2  # exit status for bad input
AGAIN = 75  # exit status of "try again": the same command goes on


class UserError(ValueError):
    """Something that the user can put right; the message names what, the value, the rule and the fix, on one line.

    Attributes:
        again: nothing needs to be changed: later the same command may go on by itself.
    """

    again = False


def rank() -> int:
    """This process's among those of its launch, as the launcher says; 0 without one."""
    return launcher_number("RANK", 0)


def world_size() -> int:
    """How many ranks the launcher says that there are; 1 without one."""
    return launcher_number("WORLD_SIZE", 1) or 1


def launcher_number(name: str, default: int) -> int:
    """A variable of a launcher; the default if it is no number, which `recipe.ranks` refuses where it matters."""
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() else default


def say(text: str, file: TextIO | None = None) -> None:
    """Print something that is said once: rank 0 speaks for all ranks of a launch.

    Args:
        file: None = standard output.
    """
    if rank() == 0:
        print(text, file=file, flush=True)


def exit_with(command: str, error: Exception | str, on_every_rank: bool = True, status: int = USAGE_ERROR) -> NoReturn:
    """End a command over bad input: the message, no traceback, status 2. Under a launcher rank 0 speaks for all.

    Args:
        command: name of the script.
        error: what to say.
        on_every_rank: all ranks end here with the same error; if not, one that is still alive after a while speaks up.
            A command that knows no ranks must not say so: RANK may be left over from another launch.
        status: to end with.
    """
    if rank() != 0:
        time.sleep(5)  # a launcher ends all ranks with the first one: rank 0 must get to speak
        if not on_every_rank:
            print(f"{command} (rank {rank()}): {error}", file=sys.stderr, flush=True)
    say(f"{command}: {error}", sys.stderr)
    sys.exit(status)
