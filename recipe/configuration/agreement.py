"""Whether a configuration may go on with what another one began."""

from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from recipe.command_line import UserError
from recipe.configuration.schema import Config

FREE = (
    "run_name", "save_folder", "scratch_folder", "device", "duration", "device_train_microbatch_size", "autoresume",
    "dry_run", "allow_changes", "world_size", "gpu", "init", "fsdp", "checkpoints", "samples", "logging",
    "ema.snapshot_interval", "ema.snapshot_dtype", "ema.snapshot_keep", "data.local", "data.remote",
    "data.num_workers", "data.cache_limit",
)  # fmt: skip
"""Keys and sections that may change from one start of a run to the next: they do not enter the result."""
FIXED = ("model", "ema.sigma_rels")
AUGMENT = "augment"  # whether there is such a section is fixed too; what it says is not
"""What gives the tensors of a checkpoint their names and shapes; no resume can change it. `model.dtype` does not."""


class DisagreementError(UserError):
    """A configuration that differs from the one a run began with; the message lists how."""


def check_agreement(config: Config, stored: str, place: str) -> None:
    """Compare `config` with the configuration in YAML that the run at `place` was started with.

    Raises:
        DisagreementError: hyper-parameters differ that `allow_changes` does not name.
    """
    old, new = dict(_leaves(yaml.safe_load(stored) or {})), dict(_leaves(config.model_dump(mode="json")))
    differing = [
        key for key in new if not _within(key, FREE) and key in old and old[key] != new[key]
    ]  # a key that an older version did not know says nothing
    fixed = [key for key in differing if (_within(key, FIXED) or key == AUGMENT) and key != "model.dtype"]
    refused = fixed + [key for key in differing if key not in fixed and not _within(key, config.allow_changes)]
    if not refused:
        return
    changes = "; ".join(f"{key} was {old[key]} and is now {new[key]}" for key in refused)
    fix = "set them back, or choose another run_name"
    if fixed:
        fix += " and start from these weights with init.path"
    else:
        fix += f", or insist with 'allow_changes=[{','.join(refused)}]'"
    raise DisagreementError(f"{place}: the run began with other hyper-parameters: {changes}; {fix}")


def _within(key: str, sections: Sequence[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield f"{prefix}{key}", "a section"
            yield from _leaves(value, f"{prefix}{key}.")
        elif key == "streams" and value is not None:  # where they are is free, as data.local and data.remote are
            yield f"{prefix}{key}", [{"proportion": stream["proportion"]} for stream in value]
        else:
            yield f"{prefix}{key}", value
