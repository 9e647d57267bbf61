"""Whether a configuration may go on with what another one began: each key of the schema says if it may change."""

from collections.abc import Iterator
from typing import Any

import yaml

from recipe.command_line import UserError
from recipe.configuration.keys import Resume, find, resume_of
from recipe.configuration.schema import Config


class DisagreementError(UserError):
    """A configuration that differs from the one a run began with; the message lists how."""


def check_agreement(config: Config, stored: str, place: str) -> list[str]:
    """Compare `config` with the configuration in YAML that the run at `place` was started with.

    A key that the older version of the recipe did not know cannot disagree. Returns the hyper-parameters that differ
    all the same, as `allow_changes` permits.

    Raises:
        DisagreementError: hyper-parameters differ that `allow_changes` does not name, or that can never change.
    """
    old, new = dict(_values(yaml.safe_load(stored) or {})), dict(_values(config.model_dump(mode="json")))
    differing = [name for name in new if not _is_free(name) and name in old and old[name] != new[name]]
    fixed = [name for name in differing if _resume(name) is Resume.FIXED]
    refused = fixed + [name for name in differing if name not in fixed and not _within(name, config.allow_changes)]
    if not refused:
        return differing
    changes = "; ".join(f"{name} was {old[name]} and is now {new[name]}" for name in refused)
    fix = "set them back, or choose another run_name"
    if fixed:
        fix += " and start from these weights with init.path"
    else:
        fix += f", or insist with 'allow_changes=[{','.join(refused)}]'"
    raise DisagreementError(f"{place}: the run began with other hyper-parameters: {changes}; {fix}")


def lasting_values(config: Config) -> dict[str, Any]:
    """The keys that may not change freely when a run goes on, with their values: what defines its result."""
    return {name: value for name, value in _values(config.model_dump(mode="json")) if not _is_free(name)}


def _resume(name: str) -> Resume | None:
    field = find(Config, name)
    return None if field is None else resume_of(field)


def _is_free(name: str) -> bool:
    return _resume(name) is Resume.FREE


def _within(name: str, sections: list[str]) -> bool:
    return any(name == section or name.startswith(f"{section}.") for section in sections)


def _values(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key with its value. Of a list of sections only those keys count that may not change freely."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield name, "a section"
            yield from _values(value, f"{name}.")
        elif isinstance(value, list) and all(isinstance(item, dict) for item in value) and value:
            yield name, [{leaf: item[leaf] for leaf in item if not _is_free(f"{name}.0.{leaf}")} for item in value]
        else:
            yield name, value
