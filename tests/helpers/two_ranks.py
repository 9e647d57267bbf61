"""A sharded run of two ranks in object storage, which several tests disturb and compare with an undisturbed one."""

from pathlib import Path

from helpers.commands import TRAIN, composer, train_arguments
from helpers.runs import stored_snapshots
from recipe.storage.places import Place
from recipe.weights.checkpoints import newest_whole

STEPS = 30
SNAPSHOTS = STEPS // 6 * 2
SETTINGS = (
    f"duration={STEPS}ba",
    "fsdp={}",
    "ema.snapshot_interval=6ba",
    "checkpoints.interval=6ba",
    "checkpoints.keep=2",
    "logging.tensorboard=false",
    "loss.label_dropout=0.1",
)


def arguments(digits: Path, folder: str | Path, *overrides: str) -> list[str]:
    """Arguments of train.py for this run, kept in `folder`."""
    return train_arguments(digits, Path("unused"), f"save_folder={folder}", *SETTINGS, *overrides)


def command(digits: Path, folder: str | Path, *overrides: str, script: Path = TRAIN) -> list[str]:
    """The run by Composer's launcher."""
    return composer(2, *arguments(digits, folder, *overrides), script=script)


def assert_same_end(place: Place, undisturbed: Place) -> None:
    """Bit for bit: every snapshot of every time; and the last checkpoint has the same name."""
    own, others = stored_snapshots(place), stored_snapshots(undisturbed)
    assert own.keys() == others.keys()
    assert [name for name in own if own[name] != others[name]] == []
    ends = [newest_whole(there.child("checkpoints")) for there in (place, undisturbed)]
    assert ends[0] is not None and ends[1] is not None
    assert (ends[0].batch, ends[0].name) == (ends[1].batch, ends[1].name)
