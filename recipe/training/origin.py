"""What a run began with: its data, and a name for all that it stores. Kept in its folder, and compared at each start.

The configuration says where the data lie, not what they are: prepared anew under the same address they are others. And
a run that begins anew in the folder of another one would share its snapshots, which belong to one run or give averages
of nothing.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from recipe.command_line import UserError, say
from recipe.configuration.agreement import lasting_values
from recipe.configuration.schema import Config
from recipe.data.checks import TrainingData
from recipe.data.facts import DataFacts
from recipe.data.meaning import differences
from recipe.storage.places import Place
from recipe.weights.snapshots import SNAPSHOT_NAME

NAME = "origin.json"
SNAPSHOTS = "snapshots"


class OriginError(UserError):
    """A run's folder that holds another run, or one on other data; the message says what to do."""


@dataclass(frozen=True)
class Origin:
    """What a run began with.

    Attributes:
        run: names the run in each snapshot; runs of the same hyper-parameters on the same data share it.
        data: of each data set, what tells it from others.
        facts: of the data, as an object of JSON.
        changed: hyper-parameters, or `data`, that were changed since.
    """

    run: str
    data: list[str]
    facts: dict[str, Any]
    changed: list[str] = field(default_factory=list)

    @staticmethod
    def of(config: Config, data: TrainingData) -> "Origin":
        """Of a run that begins now."""
        text = json.dumps([lasting_values(config), list(data.identities)], sort_keys=True, default=str)
        return Origin(hashlib.sha256(text.encode()).hexdigest()[:16], list(data.identities), data.facts.to_json())

    @staticmethod
    def read(place: Place) -> "Origin | None":
        """Of the run at `place`; None if it does not say. Raises OriginError if the file is damaged."""
        if place.size(NAME) is None:
            return None
        try:
            return Origin(**json.loads(place.read(NAME)))
        except (ValueError, TypeError) as error:
            raise OriginError(
                f"{place.describe(NAME)}: is damaged ({error}); delete it, or choose another run_name"
            ) from None

    def write(self, place: Place) -> None:
        place.write(NAME, json.dumps(asdict(self), indent=1).encode())


def origin_of(config: Config, data: TrainingData, place: Place, resumed: bool, changed: Sequence[str]) -> Origin:
    """What the run at `place` began with, or begins with now.

    Args:
        resumed: whether it goes on from a checkpoint.
        changed: hyper-parameters that differ from those of before, as `allow_changes` permits.

    Raises:
        OriginError: it goes on with other data, which `allow_changes` does not name; or it begins anew, and snapshots
            of another run are there.
    """
    stored, now = Origin.read(place), Origin.of(config, data)
    if not resumed:
        if stored is None or stored.changed or changed or stored.run != now.run:
            refuse_snapshots(place)
        return now
    if stored is None:  # of an earlier version of the recipe
        return replace(now, changed=list(changed))
    if stored.data == now.data:
        return replace(stored, changed=sorted({*stored.changed, *changed}))
    before = DataFacts.from_json(stored.facts, place.describe(NAME))
    how = differences(before, data.facts, config.model.label_dim != 0)
    what = f" ({'; '.join(how)})" if how else ""
    if "data" not in config.allow_changes:
        raise OriginError(
            f"data: are others than those that the run in save_folder {place.address} began with{what}; name the old "
            "ones, choose another run_name and start from these weights with init.path, or insist with "
            "'allow_changes=[data]'"
        )
    say(f"data: the run goes on with other data than it began with{what}")
    return Origin(stored.run, now.data, now.facts, sorted({*stored.changed, *changed, "data"}))


def refuse_snapshots(place: Place) -> None:
    """Raises OriginError if there are snapshots at `place`, for a run that begins there."""
    found = [entry.name for entry in place.child(SNAPSHOTS).list() if SNAPSHOT_NAME.fullmatch(entry.name)]
    if found:
        raise OriginError(
            f"save_folder {place.address}: a run would begin here, but {SNAPSHOTS}/ holds those of another one, such "
            f"as {found[0]}, and averages must not mix them; choose another run_name, or move that folder away"
        )
