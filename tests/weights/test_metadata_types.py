"""A sharded checkpoint's `.metadata` that holds allowed things only, but not what metadata is made of."""

import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.state_dict_saver import save

from recipe.storage.local import LocalPlace
from recipe.weights.checkpoints import clean_up, newest_whole, retain
from recipe.weights.pickles import UntrustedPickle, check_checkpoint, read_metadata

WEIGHT = MetadataIndex("state.weight")


def info(relative_path: Any = "__0_0.distcp", offset: Any = 0, length: Any = 10) -> Any:
    return _StorageInfo(relative_path, offset, length)


OTHER_OBJECTS: dict[str, Any] = {
    "nothing": None,
    "a dict": {"storage_data": {}},
    "an ordered dict": OrderedDict(storage_data={}),
    "a list": [],
    "a number": 7,
    "text": "metadata",
    "bytes": b"metadata",
    "a size": torch.Size([3]),
    "one of its parts": info(),
    "its class": Metadata,
}
OTHER_TABLES: dict[str, Any] = {
    "nothing": None,
    "a list": [info()],
    "text": "__0_0.distcp",
    "a number": 3,
}
OTHER_PARTS: dict[str, Any] = {
    "a number for a name": info(relative_path=3),
    "nothing for a name": info(relative_path=None),
    "bytes for a name": info(relative_path=b"__0_0.distcp"),
    "a path for a name": info(relative_path=Path("__0_0.distcp")),
    "an empty name": info(relative_path=""),
    "a fraction as offset": info(offset=0.5),
    "text as offset": info(offset="0"),
    "nothing as offset": info(offset=None),
    "an offset below 0": info(offset=-1),
    "a fraction as length": info(length=9.5),
    "text as length": info(length="10"),
    "nothing as length": info(length=None),
    "a length below 0": info(length=-1),
}
NO_PARTS: dict[str, Any] = {"nothing": None, "a tuple": ("__0_0.distcp", 0, 10), "a dict": {"offset": 0}, "text": "x"}


def described(name: str, kinds: dict[str, Any], make: Callable[[Any], Any]) -> dict[str, Any]:
    return {f"{name}: {kind}": make(value) for kind, value in kinds.items()}


CASES = (
    described("instead of it", OTHER_OBJECTS, lambda value: value)
    | described("storage_data", OTHER_TABLES, lambda value: Metadata({}, {}, value))
    | described("planner_data", OTHER_TABLES, lambda value: Metadata({}, value, {WEIGHT: info()}))
    | described("state_dict_metadata", OTHER_TABLES, lambda value: Metadata(value, {}, {WEIGHT: info()}))
    | described("a part with", OTHER_PARTS, lambda value: Metadata({}, {}, {WEIGHT: value}))
    | described("instead of a part", NO_PARTS, lambda value: Metadata({}, {}, {WEIGHT: value}))
    | {"text instead of an index": Metadata({}, {}, {"state.weight": info()})}  # pyright: ignore[reportArgumentType]
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The checkpoints folder of a run with one good sharded checkpoint."""
    state = {"state": {"model": {"net.weight": torch.arange(100.0)}, "timestamp": {"batch": 3}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is one process
        save(state, storage_writer=FileSystemWriter(tmp_path / "ep0-ba8"), no_dist=True)
    return tmp_path


def test_the_good_one_is_accepted(run: Path):
    assert read_metadata(run / "ep0-ba8").storage_data == FileSystemReader(run / "ep0-ba8").read_metadata().storage_data
    check_checkpoint(run / "ep0-ba8")
    newest = newest_whole(LocalPlace(run))
    assert newest is not None and newest.batch == 8


@pytest.mark.parametrize("case", CASES)
def test_metadata_of_another_type_is_refused_by_whoever_reads_it(case: str, run: Path):
    """Not passed over as incomplete either: that would delete it, and with it perhaps a run's only checkpoint."""
    file = run / "ep0-ba8" / ".metadata"
    file.write_bytes(pickle.dumps(CASES[case]))
    place = LocalPlace(run)
    for read in (
        lambda: read_metadata(file.parent),
        lambda: check_checkpoint(file.parent),
        lambda: newest_whole(place),
        lambda: clean_up(place),
        lambda: retain(place, 1),
    ):
        with pytest.raises(UntrustedPickle) as caught:
            read()
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    assert {path.name for path in file.parent.iterdir()} == {".metadata", "__0_0.distcp"}
