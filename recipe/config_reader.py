"""From YAML files and `key=value` arguments to a checked `Config`, or to one message that lists every problem.

Files merge from left to right, then the overrides. `???` as a value marks what a later file or override must set, and
`${key}` refers to another key, as in OmegaConf.
"""

import difflib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from recipe.config import Config

USAGE_ERROR = 2  # exit status for bad input


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the configuration: which key (or file), its value, the rule it breaks and how to mend it."""

    key: str
    value: str | None
    rule: str
    fix: str

    def __str__(self) -> str:
        return f"{self.key}{'' if self.value is None else f' = {self.value}'}: {self.rule}; fix: {self.fix}"


class ConfigError(ValueError):
    """Everything wrong with a configuration."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = list(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{count} in the configuration\n" + "\n".join(f"  {problem}" for problem in problems))


def read_config(arguments: Sequence[str]) -> Config:
    """The configuration that command-line arguments describe: YAML paths and `key=value` overrides.

    Raises:
        ConfigError: with all problems at once.
    """
    tree = _merge(arguments)
    config, problems = _validate(tree)
    if problems:
        raise ConfigError(problems)
    assert config is not None
    return config


def read_or_exit(arguments: Sequence[str], command: str) -> Config:
    """`read_config` for a command: prints the usage or the problems and exits with status 2."""
    if not arguments or any(argument in ("-h", "--help") for argument in arguments):
        print(f"usage: recipe/{command} CONFIG.yaml [MORE.yaml ...] [key=value ...]", file=sys.stderr)
        sys.exit(0 if arguments else USAGE_ERROR)
    try:
        return read_config(arguments)
    except ConfigError as error:
        exit_with(command, error)


def exit_with(command: str, error: Exception) -> NoReturn:
    """End a command over bad input: the message, no traceback, status 2. Under a launcher rank 0 speaks for all."""
    if os.environ.get("RANK", "0") == "0":
        print(f"{command}: {error}", file=sys.stderr, flush=True)
    sys.exit(USAGE_ERROR)


def to_yaml(config: Config) -> str:
    """The configuration with every key, as YAML that reads back to the same configuration."""
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump()))


def _merge(arguments: Sequence[str]) -> dict[str, Any]:
    """Read and merge all arguments into one plain tree. Raises ConfigError."""
    files, overrides, problems, overridden = {}, {}, [], set()
    for argument in arguments:
        try:
            if "=" in argument and not os.path.exists(argument):
                key = argument.split("=", 1)[0]
                if key in overridden:
                    raise ConfigError([Problem(key, None, "is given twice on the command line", "keep one of them")])
                overridden.add(key)
                overrides = _overlay(overrides, OmegaConf.to_container(_read_override(argument)))
            else:
                files = _overlay(files, OmegaConf.to_container(_read_file(argument)))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    if not files:
        raise ConfigError([Problem("arguments", None, "name no YAML file", "name one, for example yamls/edm2.yaml")])
    return _resolve(_overlay(files, overrides))


def _overlay(below: dict[str, Any], above: Any) -> dict[str, Any]:
    """`above` over `below`, section by section. Unlike OmegaConf.merge it lets the check of types see every clash."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, dict):
            inner = below.get(key)
            merged[str(key)] = _overlay(inner if isinstance(inner, dict) else {}, value)
        elif value != "???" or key not in below:
            merged[str(key)] = value
    return merged


def _resolve(tree: dict[str, Any]) -> dict[str, Any]:
    """Fill in `${key}`. Raises ConfigError."""
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(tree), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([_bad_reference(error.full_key or "the merged configuration", error)]) from None
    assert isinstance(resolved, dict)
    return resolved  # pyright: ignore[reportReturnType]


def _read_file(name: str) -> DictConfig:
    if not os.path.isfile(name):
        raise ConfigError([_no_file(name)])
    try:
        config = OmegaConf.load(name)
    except GrammarParseError as error:
        raise ConfigError([_bad_reference(f"{name}, {error.full_key}", error)]) from None
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}, line {mark.line + 1}" if mark else name
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        fix = "keep one of the two" if "duplicate" in what else "write `key: value` lines in YAML"
        raise ConfigError([Problem(where, None, f"is not valid YAML: {what}", fix)]) from None
    except OSError as error:
        if error.errno is not None:
            rule = f"cannot be read: {error.strerror}"
            raise ConfigError([Problem(name, None, rule, "mend its permissions")]) from None
        config = None  # how OmegaConf says that the file is a number
    if not isinstance(config, DictConfig) or not config:
        raise ConfigError([Problem(name, None, "holds no keys", "write `key: value` lines in YAML")])
    return config


def _no_file(name: str) -> Problem:
    """What to say about an argument that is neither key=value nor a file."""
    if not name.strip():
        return Problem("arguments", repr(name), "must not be blank", "name a YAML file, for example yamls/edm2.yaml")
    is_folder = os.path.isdir(name)
    if not is_folder and "/" not in name and not name.endswith((".yaml", ".yml")):
        fix = "write for example model.dropout=0.1, or name a YAML file"
        return Problem(name, None, "is neither key=value nor a YAML file", fix)
    places = {name if is_folder else os.path.dirname(name) or ".", "yamls"}
    known = sorted(str(path) for place in places if os.path.isdir(place) for path in Path(place).glob("*.yaml"))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    fix = f"did you mean {close[0]}?" if close else f"name one of {', '.join(known)}" if known else "name a YAML file"
    return Problem(name, None, "is a folder, not a YAML file" if is_folder else "no such file", fix)


def _bad_reference(key: str, error: OmegaConfBaseException, value: str | None = None) -> Problem:
    """A `${...}` that OmegaConf cannot follow."""
    fix = "refer to a key that a file or argument sets, as in ${model.dropout}, or write a plain value"
    return Problem(key, value, f"cannot be resolved: {str(error).splitlines()[0]}", fix)


def _read_override(argument: str) -> DictConfig:
    key, value = argument.split("=", 1)
    if not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", key):
        raise ConfigError([Problem(argument, None, "is not key=value", "write for example model.dropout=0.1")])
    if value.strip() in ("", "???"):
        fix = f"write {key}=VALUE, or {key}=null for none"
        raise ConfigError([Problem(key, repr(value), "must not be blank", fix)])
    try:
        return OmegaConf.from_dotlist([argument])
    except GrammarParseError as error:
        raise ConfigError([_bad_reference(key, error, value)]) from None
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        fix = f"quote it for YAML, and that for the shell: '{key}=\"...\"'"
        raise ConfigError([Problem(key, value, f"is not valid YAML: {what}", fix)]) from None


def _validate(tree: dict[str, Any]) -> tuple[Config | None, list[Problem]]:
    """Check every key by itself, then the rules that span keys, even if some keys had to be left out."""
    from recipe.config_rules import broken_rules

    try:
        config = Config.model_validate(tree)
        return config, list(broken_rules(config))
    except ValidationError as error:
        problems = _problems(error)
    bad = {problem.key for problem in problems}
    for problem in problems:
        _make_valid(tree, problem.key)
    try:
        config = Config.model_validate(tree)
    except ValidationError:
        return None, problems
    related = (problem for problem in broken_rules(config) if not _mentions(problem, bad))
    return None, problems + list(related)


def _mentions(problem: Problem, keys: set[str]) -> bool:
    """Whether a broken rule is about a key that is already known to be bad."""
    text = f"{problem.key} {problem.rule}"
    return any(re.search(rf"(?<![\w.]){re.escape(key)}(?![\w])", text) for key in keys)


def _make_valid(tree: dict[str, Any], key: str) -> None:
    """Replace a bad key by its default, or by its example if it has none."""
    if tree.pop(key, None) is not None:  # a key with dots
        return
    *sections, leaf = key.split(".")
    for section in sections:
        if not isinstance(tree.get(section), dict):
            return
        tree = tree[section]
    tree.pop(leaf, None)
    field = _field(key)
    if field is not None and field.is_required():
        tree[leaf] = field.examples[0] if field.examples else None


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, also an optional one."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _field(key: str) -> FieldInfo | None:
    """The schema's entry for a dotted key, or None if there is none."""
    section: type[BaseModel] | None = Config
    field = None
    for part in key.split("."):
        field = section.model_fields.get(part) if section else None
        if field is None:
            return None
        section = _section(field.annotation)
    return field


def _all_keys(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        inner = _section(field.annotation)
        if inner:
            keys += _all_keys(inner, f"{prefix}{name}.")
    return keys


def _problems(error: ValidationError) -> list[Problem]:
    """One problem per key; a union reports each of its branches, which become alternatives of one rule."""
    by_key: dict[str, list[Any]] = {}
    for item in error.errors(include_url=False):
        parts = [str(part) for part in item["loc"]]
        if item["type"] != "extra_forbidden":
            while len(parts) > 1 and _field(".".join(parts)) is None:  # list positions and names of union branches
                parts.pop()
        by_key.setdefault(".".join(parts), []).append(item)
    return [_problem(key, items) for key, items in by_key.items()]


def _problem(key: str, items: list[Any]) -> Problem:
    kind, given = items[0]["type"], items[0]["input"]
    field = _field(key)
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
    known = [name.rpartition(".") for name in _all_keys()]
    siblings = difflib.get_close_matches(leaf, [name for parent, _, name in known if parent == section], n=1)
    close = [f"{section}.{name}".lstrip(".") for name in siblings]
    same = [name for name in _all_keys() if re.search(rf"(?:^|[._]){re.escape(leaf)}$", name)]
    alike = difflib.get_close_matches(leaf, [name for _, _, name in known], n=1, cutoff=0.7)
    elsewhere = ["".join(parts) for parts in known if parts[2] in alike]
    return " or ".join(dict.fromkeys(close + same or elsewhere))
