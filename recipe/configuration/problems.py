"""What is wrong with a configuration, in words: key, value, rule and fix."""

import difflib
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from recipe.command_line import UserError
from recipe.configuration.schema import Config


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the configuration: which key (or file), its value, the rule it breaks and how to mend it."""

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


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, also an optional one or a list of them."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_section(candidate) for candidate in get_args(annotation))
    return next((section for section in inner if section is not None), None)


def _is_list(annotation: Any) -> bool:
    return any(get_origin(candidate) is list for candidate in (annotation, *get_args(annotation)))


def schema_entry(key: str) -> FieldInfo | None:
    """The schema's entry for a dotted key, or None if there is none."""
    section: type[BaseModel] | None = Config
    field = None
    for part in key.split("."):
        if part.isdigit() and field is not None and section is not None and _is_list(field.annotation):
            continue  # a place in a list of sections
        field = section.model_fields.get(part) if section else None
        if field is None:
            return None
        section = _section(field.annotation)
    return field


def all_keys(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        inner = _section(field.annotation)
        if inner:
            keys += all_keys(inner, f"{prefix}{name}.")
    return keys


def problems_of(error: ValidationError) -> list[Problem]:
    """One problem per key; a union reports each of its branches, which become alternatives of one rule."""
    by_key: dict[str, list[Any]] = {}
    for item in error.errors(include_url=False):
        parts = [str(part) for part in item["loc"]]
        if item["type"] != "extra_forbidden":
            while (
                len(parts) > 1 and schema_entry(".".join(parts)) is None
            ):  # list positions and names of union branches
                parts.pop()
        by_key.setdefault(".".join(parts), []).append(item)
    return [_problem(key, items) for key, items in by_key.items()]


def _problem(key: str, items: list[Any]) -> Problem:
    kind, given = items[0]["type"], items[0]["input"]
    field = schema_entry(key)
    if kind == "extra_forbidden" and field is not None:
        *sections, leaf = key.split(".")
        return Problem(key, repr(given), "is written with dots, which only key=value arguments may have",
                       f"indent {leaf} below {'.'.join(sections)}")  # fmt: skip
    if kind == "extra_forbidden":
        guess = _meant(key)
        return Problem(key, repr(given), "is not a key of the configuration",
                       f"did you mean {guess}?" if guess else "remove it; yamls/edm2.yaml shows every key")  # fmt: skip
    example = repr(field.examples[0]) if field is not None and field.examples else "as in yamls/edm2.yaml"
    fix = f"set {key}, for example {example} ({field.description})" if field is not None else "see yamls/edm2.yaml"
    if kind == "missing" or given == "???":
        return Problem(key, None, "is missing", fix)
    if given is None or (isinstance(given, str) and not given.strip()):
        return Problem(key, repr(given), "must not be blank", fix)
    if kind == "model_type":
        return Problem(key, repr(given), "must be a section, with keys of its own", fix)
    messages = (item["msg"].removeprefix("Value error, ").replace(" after validation", "") for item in items)
    rules = dict.fromkeys(re.sub(r"^\w+ should", "must", message) for message in messages)
    return Problem(key, repr(given), " or ".join(rules).replace(" or must be ", " or "), fix)


def _meant(key: str) -> str:
    """Keys that an unknown one may stand for: spelt alike in its section, of that name elsewhere, or alike there."""
    section, _, leaf = key.rpartition(".")
    known = [name.rpartition(".") for name in all_keys()]
    siblings = difflib.get_close_matches(leaf, [name for parent, _, name in known if parent == section], n=1)
    close = [f"{section}.{name}".lstrip(".") for name in siblings]
    same = [name for name in all_keys() if re.search(rf"(?:^|[._]){re.escape(leaf)}$", name)]
    alike = difflib.get_close_matches(leaf, [name for _, _, name in known], n=1, cutoff=0.7)
    elsewhere = ["".join(parts) for parts in known if parts[2] in alike]
    return " or ".join(dict.fromkeys(close + same or elsewhere))
