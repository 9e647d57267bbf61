"""From YAML files and `key=value` arguments to a checked `Config`, or to one message that lists the problems.

Files merge from left to right, then the overrides. `???` as a value marks what a later file or override must set, and
`${key}` refers to another key, as in OmegaConf.
"""

import difflib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException
from pydantic import ValidationError

from recipe.command_line import USAGE_ERROR, exit_with, world_size
from recipe.configuration.problems import ConfigError, Problem, problems_of
from recipe.configuration.rules import broken_rules, broken_rules_of_world
from recipe.configuration.schema import Config
from recipe.configuration.text import decoded, plain, read_tree, read_value, taken


def read_config(arguments: Sequence[str]) -> Config:
    """The configuration that command-line arguments describe: YAML paths and `key=value` overrides.

    Raises:
        ConfigError: with every argument that cannot be read; if there is none, with every key that is wrong by itself;
            if there is none either, with every broken rule between keys.
    """
    try:
        config = Config.model_validate(_merge(arguments))
    except ValidationError as error:
        raise ConfigError(problems_of(error)) from None
    problems = list(broken_rules(config))
    if problems:
        raise ConfigError(problems)
    return config


def read_or_exit(arguments: Sequence[str], command: str) -> Config:
    """`read_config` for a command: prints the usage or the problems and exits with status 2.

    WORLD_SIZE, which launchers set, must fit the configuration too.
    """
    if not arguments or any(argument in ("-h", "--help") for argument in arguments):
        print(f"usage: recipe/{command} CONFIG.yaml [MORE.yaml ...] [key=value ...]", file=sys.stderr)
        sys.exit(0 if arguments else USAGE_ERROR)
    try:
        config = read_config(arguments)
        problems = list(broken_rules_of_world(config, world_size()))
        if problems:
            raise ConfigError(problems)
        return config
    except ConfigError as error:
        exit_with(command, error)


def to_yaml(config: Config) -> str:
    """The configuration with every key, as YAML that reads back to the same configuration."""
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump()))


def _merge(arguments: Sequence[str]) -> dict[str, Any]:
    """Read and merge all arguments into one plain tree. Raises ConfigError."""
    files, overrides, problems = {}, {}, []
    for argument in arguments:
        try:
            if "=" in argument and not os.path.exists(argument):
                given = _read_override(argument)
                twice = [key for key in _leaves(given) if _is_given(key, overrides)]
                if twice:
                    rule = "is given twice on the command line"
                    raise ConfigError([Problem(key, None, rule, "keep one of them") for key in twice])
                overrides = _overlay(overrides, given)
            else:
                files = _overlay(files, _read_file(argument))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    if not files:
        raise ConfigError([Problem("arguments", None, "name no YAML file", "name one, for example yamls/edm2.yaml")])
    return _resolve(_overlay(files, overrides))


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of what is no section with keys."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _is_given(key: str, tree: dict[str, Any]) -> bool:
    """Whether a tree holds a key, keys below it, or something above it that is no section."""
    found: Any = tree
    for part in key.split("."):
        if not isinstance(found, dict):
            return True
        if part not in found:
            return False
        found = found[part]
    return found != {}


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
    return {key: _referred(tree[str(key)], value, str(key)) for key, value in resolved.items()}  # pyright: ignore[reportReturnType]


def _referred(written: Any, value: Any, key: str) -> Any:
    """The value that came for what was written, `${...}` as if it had been written itself: as what its key takes."""
    if isinstance(written, dict) and isinstance(value, dict):
        return {name: _referred(written[name], item, f"{key}.{name}") for name, item in value.items()}
    if not isinstance(written, str) or "${" not in written:
        return value
    takes = taken(key)
    if isinstance(value, str):
        return plain(value, takes)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number and takes.text_alone else value


def _checked_references(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree, if each `${` in it is one that OmegaConf can read. Raises GrammarParseError."""
    OmegaConf.create(tree)
    return tree


def _read_file(name: str) -> dict[str, Any]:
    path = os.path.expanduser(name)
    if not os.path.isfile(path):
        raise ConfigError([_no_file(name)])
    text = ""
    try:
        text = decoded(Path(path).read_bytes())
        tree = read_tree(text)
        if isinstance(tree, dict) and tree:
            return _checked_references(tree)
    except GrammarParseError as error:
        raise ConfigError([_bad_reference(f"{name}, {error.full_key}", error)]) from None
    except UnicodeDecodeError as error:
        rule = f"is not text in UTF-8, from its byte {error.start} on"
        raise ConfigError([Problem(name, None, rule, "save it as UTF-8, as plain text")]) from None
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}, line {mark.line + 1}" if mark else name
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        fix = _fix_of_yaml(what, text, mark)
        raise ConfigError([Problem(where, None, f"is not valid YAML: {what}", fix)]) from None
    except OSError as error:
        rule = f"cannot be read: {error.strerror}"
        raise ConfigError([Problem(name, None, rule, "change its permissions")]) from None
    raise ConfigError([Problem(name, None, "holds no keys", "write `key: value` lines in YAML")])


def _fix_of_yaml(what: str, text: str, mark: Any) -> str:
    """`mark` is where in the text, if that is known."""
    if "duplicate" in what:
        return "keep one of the two"
    if mark is not None and re.match(r" *\t", "\n".join(text.splitlines()[mark.line : mark.line + 1])):
        return "indent with spaces, not with tabs"
    return "write `key: value` lines in YAML"


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


def _read_override(argument: str) -> dict[str, Any]:
    key, value = argument.split("=", 1)
    if not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", key, re.ASCII):
        fix = "write for example model.dropout=0.1, without spaces or dashes around the key"
        raise ConfigError([Problem(argument, None, "is not key=value", fix)])
    if value.strip() in ("", "???"):
        fix = f"write {key}=VALUE, or {key}=null for none"
        raise ConfigError([Problem(key, repr(value), "must not be blank", fix)])
    try:
        tree: Any = read_value(value, taken(key))
        for name in reversed(key.split(".")):
            tree = {name: tree}
        return _checked_references(tree)
    except GrammarParseError as error:
        raise ConfigError([_bad_reference(key, error, value)]) from None
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        fix = f"quote it for YAML, and that for the shell: '{key}=\"...\"'"
        raise ConfigError([Problem(key, value, f"is not valid YAML: {what}", fix)]) from None
