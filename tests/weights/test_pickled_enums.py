"""Python 3.11.0 to 3.11.3 (Debian 12 has 3.11.2) pickle members of an enumeration as calls of getattr."""

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata
from torch.distributed.checkpoint.state_dict_saver import save

from recipe.weights.pickles import UntrustedPickle, check_checkpoint, parse_metadata, read_metadata


def as_python_3_11_2(self: Any, protocol: int) -> tuple[Callable, tuple]:
    return getattr, (type(self), self._name_)


@pytest.fixture
def old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_MEM_FORMAT_ENCODING, "__reduce_ex__", as_python_3_11_2)


@pytest.mark.usefixtures("old_python")
def test_checkpoints_of_it_can_be_read(tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is one process
        save({"weight": torch.ones(2, 3)}, storage_writer=FileSystemWriter(tmp_path), no_dist=True)
    assert b"getattr" in (tmp_path / ".metadata").read_bytes()
    check_checkpoint(tmp_path)
    genuine = FileSystemReader(tmp_path).read_metadata()
    assert read_metadata(tmp_path).state_dict_metadata == genuine.state_dict_metadata


class GetAttribute:
    def __init__(self, *arguments: Any):
        self.arguments = arguments

    def __reduce__(self) -> tuple[Callable, tuple]:
        return getattr, self.arguments


@pytest.mark.parametrize(
    "arguments",
    [
        (_MEM_FORMAT_ENCODING, "__class__"),
        (_MEM_FORMAT_ENCODING, "mro"),
        (Metadata, "TORCH_CONTIGUOUS_FORMAT"),
        (Metadata, "__init__"),
        ("text", "upper"),
        (_MEM_FORMAT_ENCODING, "TORCH_CONTIGUOUS_FORMAT", None),
    ],
    ids=str,
)
def test_getattr_of_anything_else_is_refused(arguments: tuple):
    data = pickle.dumps(GetAttribute(*arguments))
    with pytest.raises(UntrustedPickle):
        parse_metadata(data, "here")
