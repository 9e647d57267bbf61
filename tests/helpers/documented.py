"""The commands that README.md and docs/ tell people to run, and what must be put in their places to run them here."""

import re
import shlex
from collections.abc import Mapping

from helpers.commands import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARKS = ("<!-- needs a GPU cluster -->", "<!-- needs data from the network -->")
SCRIPT = re.compile(r"(?:recipe/\w+\.py|launch/\w+\.sh)$")


def commands(text: str) -> list[tuple[str, bool]]:
    """The commands in a page's code blocks, on one line and without comments, and whether they are marked."""
    found, mark = [], False
    for paragraph in text.split("\n\n"):
        lines = paragraph.strip("\n").split("\n")
        if all(line.startswith("    ") for line in lines):
            joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
            found += [(re.sub(r"\s+#.*", "", line).strip(), mark) for line in joined.split("\n")]
        mark = lines[-1] in MARKS
    return found


ALL = [(page.name, command, marked) for page in PAGES for command, marked in commands(page.read_text())]


def matching(pattern: str) -> list[str]:
    """The commands of all pages that a pattern describes, each once, in the order of the pages."""
    found = [command for _, command, _ in ALL if re.fullmatch(pattern, command)]
    assert found, f"no page has a command like {pattern} any more"
    return list(dict.fromkeys(found))


def after_script(command: str) -> tuple[str, list[str]]:
    """The script that a command starts in the end, whatever launches it, and the words after it."""
    words = shlex.split(command)
    index = max(index for index, word in enumerate(words) if SCRIPT.search(word))
    return words[index], words[index + 1 :]


def placed(words: list[str], places: Mapping[str, object]) -> list[str]:
    """The words with other places: each key of `places` stands for itself or for what begins with it and a slash."""
    return [_placed(word, places) for word in words]


def _placed(word: str, places: Mapping[str, object]) -> str:
    key, equals, value = word.partition("=")
    if equals and re.fullmatch(r"[\w.]+", key):
        if key == "run_name":  # no place
            return word
        return f"{key}={_placed(value, places)}"
    for name, place in places.items():
        if word == name or word.startswith(f"{name}/"):
            return f"{place}{word.removeprefix(name)}"
    return word


def sized(words: list[str], sizes: Mapping[str, object]) -> list[str]:
    """The words with other sizes: `key=value`, or options with their values."""
    left = [
        word
        for index, word in enumerate(words)
        if word.partition("=")[0] not in sizes
        and (index == 0 or words[index - 1] not in sizes or not words[index - 1].startswith("--"))
    ]
    for name, value in sizes.items():
        left += [name, str(value)] if name.startswith("--") else [f"{name}={value}"]
    return left
