"""Numbers and paths as people write them: one rule for YAML files, `key=value` and the options of every command.

Decimal, in the digits 0 to 9, without leading zeros: YAML 1.1 and C read 010 as 8, people as 10, so that nobody may
guess. 1_000 and, where a whole number is wanted, 1e5 are clear. What looks like a number and is none has a reason.
"""

import os
import re
import unicodedata
from fractions import Fraction

_WHOLE = re.compile(r"[+-]?(?:0|[1-9][0-9]*)")
_GROUPED = re.compile(r"[+-]?[1-9][0-9]{0,2}(?:_[0-9]{3})+")
_DECIMAL = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[+-]?\.?(?:inf|Inf|INF|nan|NaN|NAN)")
UNSEEN = " \t\r\n\v\f\u00a0\u200b\u3000\ufeff"  # what nobody sees at the ends of a word
_LONGEST = 400  # digits; Python reads at most 4300


def number(text: str) -> int | float | None:
    """The number that `text` is, a float only if it has a point or an exponent (or is infinite or none); or None."""
    if len(text) > _LONGEST:
        return None
    if _WHOLE.fullmatch(text) or _GROUPED.fullmatch(text):
        return int(text.replace("_", ""))
    if _DECIMAL.fullmatch(text):
        return float(text)
    return float(text.replace(".", "")) if _NOT_FINITE.fullmatch(text) and "." in text else None


def whole(text: str) -> int | None:
    """The whole number that `text` is; 1e5 is one, 5.0 and 1e-1 are none."""
    found = number(text)
    if isinstance(found, float) and "." not in text and abs(found) < 1e30:
        exact = Fraction(text)
        return int(exact) if exact.denominator == 1 else None
    return found if isinstance(found, int) else None


def why_not(text: str) -> tuple[str, str] | None:
    """The rule that something like a number breaks, and the fix; None if it looks like no number, or is one."""
    if number(text) is not None:
        return None
    ascii_text = "".join(str(unicodedata.digit(letter, letter)) for letter in text)
    if ascii_text != text:
        return "must be in the digits 0 to 9", f"write {ascii_text}"
    match = re.fullmatch(r"([+-]?)0[0-9_]*[0-9]((?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?[A-Za-z]{0,2})", text)
    if match and not re.fullmatch(r"[+-]?0[box].*", text, re.IGNORECASE):
        digits = text.removeprefix(match[1]).removesuffix(match[2])
        rule = "must not begin with a 0, which could mean an octal number"
        return rule, f"write {match[1]}{digits.replace('_', '').lstrip('0') or '0'}{match[2]}"
    if re.fullmatch(r"[+-]?0(?:[bB][01]+|[oO][0-7]+|[xX][0-9a-fA-F]+)", text):
        return "must be decimal", f"write {int(text, 0)}"
    if re.fullmatch(r"[+-]?[0-9][0-9_.]*[A-Za-z]{0,2}", text) and "_" in text:
        return "has underscores that do not group thousands", f"write {text.replace('_', '')}"
    if re.fullmatch(r"[+-]?[0-9]+(?::[0-9]+)+", text):
        return "must be decimal, without colons", "write one number"
    if re.fullmatch(r"[+-]?[0-9]+(?:,[0-9]+)+", text):
        return "must have a point before decimals, and none between thousands", f"write {text.replace(',', '.', 1)}"
    return None


def home_expanded(text: str) -> str | None:
    """The path with the home folder for `~` or `~user` at its begin; None if there is no such folder or user."""
    if not text.startswith("~"):
        return text
    expanded = os.path.expanduser(text)
    return None if expanded.startswith("~") else expanded


def unfilled_variable(text: str) -> str | None:
    """The first variable of the environment that a path names as a shell would, `$HOME` or `${HOME}`; None = none."""
    names = (match[1] or match[2] for match in re.finditer(r"\$(?:(\w+)|\{(\w+)\})", text))
    return next((name for name in names if name in os.environ), None)
