"""What is wrong with a configuration, in words: key, value, rule and fix."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from recipe.command_line import UserError
from recipe.configuration.keys import all_keys, find
from recipe.configuration.schema import Config
from recipe.configuration.text import taken
from recipe.configuration.values import Refused
from recipe.notation import why_not


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the configuration: the key (or file), its value, the rule it breaks, and the fix."""

    key: str
    value: str | None
    rule: str
    fix: str

    def __str__(self) -> str:
        return f"{self.key}{'' if self.value is None else f' = {self.value}'}: {self.rule}; fix: {self.fix}"


class ConfigError(UserError):
    """Everything wrong with a configuration."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = list(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{count} in the configuration\n" + "\n".join(f"  {problem}" for problem in problems))


def problems_of(error: ValidationError) -> list[Problem]:
    """One problem per key; a union reports each of its branches, which become alternatives of one rule."""
    by_key: dict[str, list[ErrorDetails]] = {}
    for item in error.errors(include_url=False):
        parts = [str(part) for part in item["loc"]]
        if item["type"] != "extra_forbidden":
            while len(parts) > 1 and find(Config, ".".join(parts)) is None:
                parts.pop()  # the position in a list, or the name of a union's branch
        by_key.setdefault(".".join(parts), []).append(item)
    return [_problem(key, items) for key, items in by_key.items()]


def _problem(key: str, items: list[ErrorDetails]) -> Problem:
    kind, given = items[0]["type"], items[0]["input"]
    if kind == "extra_forbidden":
        return _unknown(key, given)
    field = find(Config, key)
    example = repr(field.examples[0]) if field is not None and field.examples else "as in yamls/edm2.yaml"
    fix = f"set {key}, for example {example} ({field.description})" if field is not None else "see yamls/edm2.yaml"
    if kind == "missing" or given == "???":
        return Problem(key, None, "is missing", fix)
    if given is None or (isinstance(given, str) and not given.strip()):
        return Problem(key, repr(given), "must not be blank", fix)
    if kind == "model_type":
        return Problem(key, repr(given), "must be a section, with keys of its own", fix)
    misread = why_not(given) if isinstance(given, str) and not taken(key).text_alone else None
    if misread is not None:
        return Problem(key, given, *misread)
    refused = items[0].get("ctx", {}).get("error")
    if isinstance(refused, Refused):
        return Problem(key, refused.value, refused.rule, refused.fix)
    messages = (item["msg"].removeprefix("Value error, ").replace(" after validation", "") for item in items)
    rules = dict.fromkeys(re.sub(r"^\w+ should", "must", message) for message in messages)
    return Problem(key, repr(given), " or ".join(rules).replace(" or must be ", " or "), fix)


def _unknown(key: str, given: object) -> Problem:
    """A key that is not in the schema, or only if its dots are read as they are in key=value."""
    if find(Config, key) is not None:
        *sections, leaf = key.split(".")
        fix = f"indent {leaf} below {'.'.join(sections)}"
        return Problem(key, repr(given), "is written with dots, which only key=value arguments may have", fix)
    guess = _meant(key)
    fix = f"did you mean {guess}?" if guess else "remove it; yamls/edm2.yaml shows every key"
    return Problem(key, repr(given), "is not a key of the configuration", fix)


def _meant(key: str) -> str:
    """Keys that an unknown one may stand for: spelt alike in its section, of that name elsewhere, or alike there."""
    section, _, leaf = key.rpartition(".")
    names = [name for name, _ in all_keys(Config)]
    known = [name.rpartition(".") for name in names]
    siblings = difflib.get_close_matches(leaf, [name for parent, _, name in known if parent == section], n=1)
    close = [f"{section}.{name}".lstrip(".") for name in siblings]
    same = [name for name in names if re.search(rf"(?:^|[._]){re.escape(leaf)}$", name)]
    alike = difflib.get_close_matches(leaf, [name for _, _, name in known], n=1, cutoff=0.7)
    elsewhere = ["".join(parts) for parts in known if parts[2] in alike]
    return " or ".join(dict.fromkeys(close + same or elsewhere))
