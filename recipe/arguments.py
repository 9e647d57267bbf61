"""Ways of writing lists on the command line."""

import math
from collections.abc import Sequence


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
