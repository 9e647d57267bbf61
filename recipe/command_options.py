"""The options of a command: read by one rule, and refused in one line before any work.

An option is written out, given once, and has a value that is not blank. Numbers and paths are as `notation.py`
has them.
"""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from recipe.command_line import UserError, exit_with
from recipe.notation import UNSEEN, home_expanded, number, unfilled_variable, whole, why_not

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/.*")


class OptionError(UserError):
    """An option that cannot be meant so; the message names it, its value, the rule and the fix."""


class Options(argparse.ArgumentParser):
    """A parser whose errors are one line and status 2.

    Args:
        command: name of the script.
        description: what it does.
    """

    def __init__(self, command: str, description: str):
        super().__init__(prog=command, description=description, allow_abbrev=False)

    def known(self) -> list[str]:
        """The options that there are, as they are written."""
        return re.findall(r"--[a-z][a-z-]*", self.format_usage())

    def error(self, message: str) -> NoReturn:
        own = re.sub(r"^argument \S+: (?=(-|[A-Z]+ ))", "", message)  # what the types below raise names the option
        if own == message:
            match = re.match(r"unrecognized arguments: (--[^ =]+)", message)
            close = difflib.get_close_matches(match[1], self.known(), n=1) if match else []
            own += f"; did you mean {close[0]}?" if close else "; see --help"
        exit_with(self.prog, own)

    def parse_args(self, args: Sequence[str] | None = None) -> argparse.Namespace:  # pyright: ignore
        given, known = list(sys.argv[1:] if args is None else args), self.known()
        names = [text.split("=", 1)[0] for text in given if text.startswith("--")]
        for name in dict.fromkeys(names):
            if name in known and names.count(name) > 1:
                exit_with(self.prog, f"{name}: is given {names.count(name)} times; keep one of them")
        return super().parse_args(given)


def choice(option: str, *allowed: str) -> Callable[[str], str]:
    """One of some words."""

    def read(text: str) -> str:
        if text not in allowed:
            close = difflib.get_close_matches(text, allowed, n=1)
            fix = f"; did you mean {close[0]}?" if close else ""
            raise argparse.ArgumentTypeError(f"{option} {text}: must be one of {', '.join(allowed)}{fix}")
        return text

    return read


def whole_number(option: str, least: int = 1, most: int = 2**31 - 1) -> Callable[[str], int]:
    """A whole number in a range."""

    def read(text: str) -> int:
        found = whole(text.strip())
        if found is None:
            raise _no_number(option, text, "must be a whole number")
        if not least <= found <= most:
            rule = f"must be at least {least}" if found < least else f"must be at most {most}"
            raise argparse.ArgumentTypeError(f"{option} {text}: {rule}")
        return found

    return read


def real_number(option: str, above: float | None = None, least: float | None = None) -> Callable[[str], float]:
    """A finite number above one or from one on."""

    def read(text: str) -> float:
        found = number(text.strip())
        if found is None:
            raise _no_number(option, text, "must be a number")
        if not abs(found) < float("inf"):
            raise argparse.ArgumentTypeError(f"{option} {text}: must be finite")
        if above is not None and found <= above:
            raise argparse.ArgumentTypeError(f"{option} {text}: must be above {above:g}")
        if least is not None and found < least:
            raise argparse.ArgumentTypeError(f"{option} {text}: must be at least {least:g}")
        return float(found)

    return read


def _no_number(option: str, text: str, rule: str) -> argparse.ArgumentTypeError:
    reason = why_not(text.strip())
    return argparse.ArgumentTypeError(f"{option} {text}: {rule if reason is None else '; '.join(reason)}")


def word(option: str) -> Callable[[str], str]:
    """Text that is not blank."""

    def read(text: str) -> str:
        if not text.strip(UNSEEN):
            raise argparse.ArgumentTypeError(f"{option} {text!r}: must not be blank")
        return text

    return read


def address(option: str) -> Callable[[str], str]:
    """A local path or an address such as s3://bucket/prefix, `~` at its begin filled in."""

    def read(text: str) -> str:
        if text != text.strip(UNSEEN) or not text or any(ord(letter) < 32 for letter in text):
            rule = "must not be blank, begin or end with a space, or hold control characters"
            raise argparse.ArgumentTypeError(f"{option} {text!r}: {rule}")
        variable = unfilled_variable(text)
        if variable is not None:
            rule = f"names the variable {variable}, which nobody has filled in; use double quotes in the shell, or none"
            raise argparse.ArgumentTypeError(f"{option} {text}: {rule}")
        expanded = home_expanded(text)
        if expanded is None:
            rule = f"begins with {text.split('/')[0]}, whose home folder is not known; write ./{text} for such a name"
            raise argparse.ArgumentTypeError(f"{option} {text}: {rule}")
        return expanded

    return read


def local_path(option: str) -> Callable[[str], Path]:
    """A path on this machine."""

    def read(text: str) -> Path:
        path = address(option)(text)
        if _ADDRESS.fullmatch(path):
            raise argparse.ArgumentTypeError(f"{option} {text}: must be on this machine; copy it there afterwards")
        return Path(path)

    return read


def check_folder(path: Path, option: str) -> None:
    """Raises OptionError if files cannot be written into the folder, which need not be there yet."""
    there = path.absolute()
    while not there.exists() and not there.is_symlink():
        there = there.parent
    if not there.is_dir():
        raise OptionError(f"{option} {path}: {there} is a file, not a folder; name another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OptionError(f"{option} {path}: {there} may not be written to; name another place")


def check_file(path: Path, option: str, formats: Sequence[str]) -> None:
    """Raises OptionError if no file of one of the formats (".png") can be written there."""
    if path.suffix.lower() not in formats:
        known = ", ".join(formats)
        fix = f"write {path}{formats[0]}" if not path.suffix else f"use one of {known}"
        raise OptionError(f"{option} {path}: must end with the kind of file, {known}; {fix}")
    if path.is_dir():
        raise OptionError(f"{option} {path}: is a folder; name a file in it, for example {path / 'grid'}{formats[0]}")
    check_folder(path.parent, option)


def refuse_idle(arguments: argparse.Namespace, options: Sequence[str], reason: str) -> None:
    """Raises OptionError for options that are given (not None, not false) and would do nothing."""
    for option in options:
        value = getattr(arguments, option.lstrip("-").replace("-", "_"))
        if value is not None and value is not False:
            shown = "" if value is True else f" {value}"
            raise OptionError(f"{option}{shown}: {reason}")
