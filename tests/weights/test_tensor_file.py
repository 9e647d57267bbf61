"""Tensors by ranges of a file: what the safetensors library wrote, and layouts that it would not write."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from helpers.small_snapshots import NETWORK
from recipe.evaluation.feature_set import FeatureSet
from recipe.evaluation.reference import About, save_reference
from recipe.storage.local import LocalPlace
from recipe.weights.snapshots import SnapshotInfo, save_snapshot
from recipe.weights.state_dicts import write_state_dict
from recipe.weights.tensor_file import TensorFile, TensorFileError

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.arange(5, dtype=torch.float16),
    "c": torch.zeros(0, 4),
    "d": torch.tensor(3, dtype=torch.int64),
    "e": torch.tensor([True, False]),
}


def test_reads_what_the_library_wrote(tmp_path: Path):
    save_file(TENSORS, tmp_path / "x", {"key": "text"})
    file = TensorFile(LocalPlace(tmp_path), "x")
    assert file.metadata == {"key": "text"}
    assert file.shapes == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    assert sorted(file.names()) == sorted(TENSORS)
    for names in (file.names(), [*reversed(file.names())], ["d"], ["e", "a"]):
        for name, tensor in zip(names, file.read(names), strict=True):
            assert tensor.dtype == TENSORS[name].dtype and torch.equal(tensor, TENSORS[name]), name


WRITERS = [
    lambda path: save_snapshot(path, {"a": torch.ones(2)}, SnapshotInfo(NETWORK, 1000, 0.05)),
    lambda path: write_state_dict(path, TENSORS),
    lambda path: save_reference(path, About("own:network"), FeatureSet(2, torch.zeros(3), torch.eye(3))),
]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_others_may_read_what_the_umask_lets_them(
    tmp_path: Path, write: Callable[[Path], object], umask: int, mode: int
):
    before = os.umask(umask)
    try:
        write(tmp_path / "x.safetensors")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()] == [mode]


def write(path: Path, ranges: dict[str, tuple[int, int]], size: int, **changes: Any) -> TensorFile:
    """A file of bytes with float32 tensors [2] in those ranges of them."""
    header = {
        name: {"dtype": "F32", "shape": [2], "data_offsets": list(offsets)} | changes
        for name, offsets in ranges.items()
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    return TensorFile(LocalPlace(path.parent), path.name)


def test_layout_without_gaps(tmp_path: Path):
    assert write(tmp_path / "x", {"later": (8, 16), "first": (0, 8)}, 16).names() == ["first", "later"]


@pytest.mark.parametrize(
    ("ranges", "size", "changes"),
    [
        ({"x": (0, 8), "y": (12, 20)}, 20, {}),
        ({"x": (4, 12)}, 12, {}),
        ({"x": (0, 8), "y": (4, 12)}, 12, {}),
        ({"x": (0, 8), "y": (0, 8)}, 8, {}),
        ({"x": (0, 8)}, 12, {}),
        ({"x": (0, 8)}, 4, {}),
        ({"x": (0, 12)}, 12, {}),
        ({"x": (0, 4)}, 4, {}),
        ({"x": (8, 0)}, 0, {}),
        ({"x": (-8, 0)}, 0, {}),
        ({"x": (0, 8)}, 8, {"dtype": "F64"}),
        ({"x": (0, 8)}, 8, {"dtype": "F128"}),
        ({"x": (0, 8)}, 8, {"shape": [-1, -2]}),
        ({"x": (0, 8)}, 8, {"shape": [2.0]}),
    ],
    ids=[
        "gap",
        "gap at the start",
        "overlap",
        "twice",
        "rest",
        "cut short",
        "too long",
        "too short",
        "backwards",
        "before the data",
        "other type",
        "unknown type",
        "negative shape",
        "fraction",
    ],
)
def test_other_layouts_are_refused(ranges: dict[str, tuple[int, int]], size: int, changes: dict, tmp_path: Path):
    with pytest.raises(TensorFileError):
        write(tmp_path / "x", ranges, size, **changes)
