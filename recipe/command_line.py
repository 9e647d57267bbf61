"""The command line: lists as users write them, and how a command ends over bad input."""

import math
import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn, TextIO

from recipe.notation import number, whole, why_not

MOST = 10_000_000  # of a list: a slip of the pen must not fill the memory


def parse_integers(text: str) -> list[int]:
    """Integers from `0-39,50`: single ones and inclusive ranges. Raises ValueError with the rule."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = (word.strip() for word in part.partition("-"))
        start, end = whole(first), whole(last if dash else first)
        if start is None or end is None or not first[0].isdecimal() or not (last or first)[0].isdecimal():
            rule = "is not a list of whole numbers and ranges such as 0-39,50"
            raise ValueError(f"{text!r} {rule}{_reason(part, (first, last))}")
        if end < start:
            raise ValueError(f"{part.strip()!r} is a range that falls; write {end}-{start}")
        if end >= 2**63:
            raise ValueError(f"{part.strip()!r} goes beyond 2^63 - 1")
        if len(numbers) + end - start >= MOST:
            raise ValueError(f"{text!r} are more than {MOST} numbers; ask for fewer at once")
        numbers += range(start, end + 1)
    return numbers


def parse_numbers(text: str) -> list[float]:
    """Numbers from `0.05,0.10:0.20:0.05`: single ones and inclusive ranges start:end:step. Raises ValueError."""
    numbers: list[float] = []
    for part in text.split(","):
        words = [word.strip() for word in part.split(":")]
        values = [float(value) for word in words if (value := number(word)) is not None and abs(value) < math.inf]
        if len(values) == len(words) == 1:
            numbers += values
        elif len(values) == len(words) == 3 and values[2] > 0 and values[0] <= values[1]:
            start, end, step = values
            count = int(min((end - start) / step, MOST) + 1e-6) + 1
            if len(numbers) + count > MOST:
                raise ValueError(f"{text!r} are more than {MOST} numbers; use a larger step")
            numbers += [round(start + index * step, 9) for index in range(count)]
        else:
            rule = "is not a list of numbers and ranges start:end:step such as 0.05,0.10:0.20:0.05"
            raise ValueError(f"{text!r} {rule}{_reason(part, words)}")
    return numbers


def _reason(part: str, words: Sequence[str]) -> str:
    """Why the first of the words in a part of a list is no number, to be added to a message; "" if nothing is known."""
    reason = next((found for word in words if (found := why_not(word)) is not None), None)
    return "" if reason is None else f"; {part.strip()!r} {reason[0]}: {reason[1]}"


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


def remark(text: str) -> None:
    """Say on standard error, in the name of the command, what is no error; rank 0 speaks for all ranks."""
    say(f"{os.path.basename(sys.argv[0])}: {text}", sys.stderr)


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
