"""Amounts of training, counted in images seen.

Every interval and duration of the recipe is written as a number of images (`200000`), with a decimal or binary suffix
(`200k`, `8Mi`, `2Gi`), or as a Composer time string (`4096sp` samples, `100ba` batches, `3ep` epochs).
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from recipe.command_line import UserError
from recipe.notation import whole, why_not

SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "ki": 2**10, "Mi": 2**20, "Gi": 2**30}
UNITS = ("sp", "ba", "ep")
RULE = "must be a number of images such as 200000, 200k, 8Mi or 2Gi, or a Composer time string in sp, ba or ep"
_IMAGES = re.compile(r"((?:0|[1-9][0-9]*)(?:\.[0-9]+)?)(k|M|G|ki|Mi|Gi)?")
_TIME = re.compile(rf"(0|[1-9][0-9]*)({'|'.join(UNITS)})")


@dataclass(frozen=True)
class Span:
    """An amount of training as it was written: `value` in `unit` "sp" (images), "ba" (batches) or "ep" (epochs)."""

    value: int
    unit: str
    text: str

    @classmethod
    def parse(cls, given: object) -> "Span":
        """Read a number or a string. Raises ValueError, with the rule, for anything else."""
        if isinstance(given, Span):
            return given
        if isinstance(given, bool) or not isinstance(given, int | float | str):
            raise ValueError(RULE)
        text = f"{given:.0f}" if isinstance(given, float) and given.is_integer() else str(given).strip()
        found = None if text[:1] in ("+", "-") else whole(text)
        text = text if found is None else str(found)
        if match := _TIME.fullmatch(text):
            return cls(int(match[1]), match[2], text)
        match = _IMAGES.fullmatch(text)
        if match is None:
            reason = why_not(text)
            raise ValueError(RULE if reason is None else f"{RULE}; {text} {reason[0]}: {reason[1]}")
        images = Fraction(match[1]) * SUFFIXES[match[2] or ""]
        if images.denominator != 1:
            raise ValueError(f"{RULE}; {text} is {float(images):g} images, not a whole number")
        return cls(int(images), "sp", text)

    def images(self, global_batch_size: int, images_per_epoch: int | None = None) -> int:
        """The amount in images. Raises ValueError for epochs of a data set whose size is not known."""
        if self.unit == "sp":
            return self.value
        if self.unit == "ba":
            return self.value * global_batch_size
        if images_per_epoch is None:
            raise ValueError(f"{self.text} is in epochs, but the size of the data set is not known here")
        return self.value * images_per_epoch

    def __str__(self) -> str:
        return self.text


def images_in(text: str, option: str, others: str = "") -> int:
    """An amount written in images. Raises UserError for batches and epochs, whose size only a run knows.

    Args:
        option: that the text was given for.
        others: what else it takes, for the message.
    """
    try:
        span = Span.parse(text)
    except ValueError as error:
        raise UserError(f"{option} {text}: {error}{others}") from None
    if span.unit != "sp":
        raise UserError(f"{option} {text}: must be in images, for example 8Mi{others}")
    return span.value
