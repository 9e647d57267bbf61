"""Checkpoints are pickles, and a pickle can run any code. These are read only if they name nothing but what they need.

Composer and torch's distributed checkpoints unpickle without restriction, so every pickle of a checkpoint is read here
first. What `torch.save` wrote (a `.pt` file, each part of a sharded checkpoint) goes through torch's own restricted
reader with a list of names; `.metadata`, whose pickle protocol that reader does not know, through a small one below.
"""

import contextlib
import dataclasses
import datetime
import io
import pathlib
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata, MetadataIndex
from torch.torch_version import TorchVersion

from recipe.command_line import UserError

METADATA = ".metadata"
# Everything on these two lists must be harmless whatever it is called with: never add what calls or unpickles an
# argument, such as torch.storage._load_from_bytes, nor getattr as such.
SAFE_GLOBALS: list[Any] = [  # what Composer keeps beside tensors: clocks, NumPy's random state and scalars, versions
    (datetime.timedelta, "datetime.timedelta"),
    (pathlib.PosixPath, "pathlib.PosixPath"),
    (TorchVersion, "torch.torch_version.TorchVersion"),
    (np.ndarray, "numpy.ndarray"),
    (np.dtype, "numpy.dtype"),
    *((np.zeros(0).__reduce__()[0], f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(type(np.dtype(kind)) for kind in "?bhilqBHILQefdSU"),
]
_DCP = "torch.distributed.checkpoint"
METADATA_GLOBALS = {
    "collections.OrderedDict",
    "pathlib.PosixPath",
    "torch.Size",
    "torch.serialization._get_layout",
    *(f"torch.{dtype}" for dtype in ("bfloat16", "float16", "float32", "float64", "bool", "uint8")),
    *(f"torch.int{bits}" for bits in (8, 16, 32, 64)),
    f"{_DCP}.filesystem._StorageInfo",
    *(f"{_DCP}.metadata.{name}" for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties")),
    *(f"{_DCP}.metadata.{kind}StorageMetadata" for kind in ("Bytes", "Chunk", "Tensor")),
    f"{_DCP}.metadata._MEM_FORMAT_ENCODING",
}


class UntrustedPickle(UserError):
    """A file that names code which no checkpoint needs, or is no checkpoint at all; nothing of it was run."""


def check_checkpoint(path: Path) -> None:
    """Check every pickle of a checkpoint, a `.pt` file or the folder of a sharded one. Tensors are not read.

    Raises:
        UntrustedPickle: naming the file and the foreign global.
    """
    if not path.is_dir():
        load_torch(path, str(path), mmap=True)
        return
    for index, part in read_metadata(path).storage_data.items():  # pyright: ignore[reportOptionalMemberAccess]
        file = path / part.relative_path
        with open(file, "rb") as source, torch.serialization.skip_data():
            load_torch(_Window(source, part.offset, part.length), f"{file}, {index.fqn}")


def load_torch(source: Path | io.IOBase, where: str, mmap: bool = False) -> Any:
    """What `torch.save` wrote, on the CPU.

    Args:
        where: the file, for messages.
        mmap: leave the tensors of a file on disk until they are used.

    Raises:
        UntrustedPickle: it names foreign code, or is nothing that `torch.save` writes today.
    """
    try:
        _check_archive(source, where)
        with _only_safe_globals():
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)  # pyright: ignore
    except UntrustedPickle:
        raise
    except Exception as error:  # garbage can raise anything: it is refused all the same
        found = re.search(r"GLOBAL (\S+) (?:was not|whose)", str(error))
        raise _foreign(where, found[1]) if found else _damaged(where, error) from None


def read_metadata(folder: Path) -> Metadata:
    """The table of contents of a sharded checkpoint. Raises UntrustedPickle as `parse_metadata`."""
    return parse_metadata((folder / METADATA).read_bytes(), str(folder / METADATA))


def parse_metadata(data: bytes, where: str) -> Metadata:
    """The contents of a `.metadata` file; `where` is the file, for messages.

    Raises:
        UntrustedPickle: foreign code, something else than metadata, or parts that lie outside the folder.
    """
    stream = io.BytesIO(data)
    try:
        metadata = _MetadataUnpickler(stream).load()
        if stream.read(1):
            raise ValueError("bytes follow the pickle")
    except _Foreign as error:
        raise _foreign(where, error) from None
    except Exception as error:  # garbage can raise anything: it is refused all the same
        raise _damaged(where, error) from None
    tables = ("state_dict_metadata", "planner_data", "storage_data")
    if not isinstance(metadata, Metadata) or not all(isinstance(vars(metadata).get(table), dict) for table in tables):
        raise _not_metadata(where)
    for index, part in vars(metadata)["storage_data"].items():
        if not isinstance(index, MetadataIndex) or not isinstance(part, _StorageInfo):
            raise _not_metadata(where)
        name, offset, length = (vars(part).get(field) for field in ("relative_path", "offset", "length"))
        if not isinstance(name, str) or name in ("", ".", "..") or PurePosixPath(name).name != name or "\\" in name:
            raise UntrustedPickle(f"{where}: names the part {name!r}, which is not a file beside it; do not load it")
        if not (isinstance(offset, int) and isinstance(length, int) and offset >= 0 <= length):
            raise UntrustedPickle(f"{where}: gives {name} the range {offset} + {length}; do not load it")
        if part.transform_descriptors:  # what is unpacked from the part would be other bytes than were checked
            raise UntrustedPickle(f"{where}: {name} is packed by {part.transform_descriptors}; do not load it")
    return metadata


def _not_metadata(where: str) -> UntrustedPickle:
    return UntrustedPickle(f"{where}: is not the metadata of a checkpoint; fetch it again from where it was made")


def _foreign(where: str, name: object) -> UntrustedPickle:
    return UntrustedPickle(
        f"{where}: its pickle names {name}, which no checkpoint needs; nothing of it was run: do not load it, and find "
        "out where it comes from"
    )


def _damaged(where: str, error: Exception) -> UntrustedPickle:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
    return UntrustedPickle(f"{where}: is damaged or not in the format of a checkpoint ({reason}); fetch it again")


def _check_archive(source: Path | io.IOBase, where: str) -> None:
    """Refuse all but a ZIP whose only pickle is data.pkl: torch.load also reads older formats and TorchScript."""
    with contextlib.ExitStack() as stack:
        file: Any = stack.enter_context(open(source, "rb")) if isinstance(source, Path) else source
        file.seek(0)
        if file.read(4) != b"PK\3\4":  # by this torch.load tells the format
            raise ValueError("no ZIP file")
        names = stack.enter_context(zipfile.ZipFile(file)).namelist()
    pickles = [name for name in names if name.endswith((".pkl", ".py", ".pickle"))]
    if [PurePosixPath(name).name for name in pickles] != ["data.pkl"] or len(set(names)) < len(names):
        raise UntrustedPickle(f"{where}: holds {pickles}, not one data.pkl; do not load it")
    if not isinstance(source, Path):
        source.seek(0)


@contextlib.contextmanager
def _only_safe_globals() -> Iterator[None]:
    """Let torch.load know no other classes than SAFE_GLOBALS and its own; importing libraries can add some."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            yield
    finally:
        torch.serialization.add_safe_globals(before)


class _Window(io.RawIOBase):
    """A range of an open file as a file of its own."""

    def __init__(self, source: BinaryIO, offset: int, length: int):
        self._source, self._offset, self._length, self._position = source, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        if position < 0:
            raise OSError("negative position")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        self._source.seek(self._offset + self._position)
        data = self._source.read(min(len(buffer), max(self._length - self._position, 0)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


class _Foreign(Exception):
    """Names what a pickle may not use."""


# The one written in Python: that in C would let the operation BUILD set attributes of classes.
_Unpickler: Any = pickle._Unpickler  # pyright: ignore[reportAttributeAccessIssue]


class _MetadataUnpickler(_Unpickler):
    """Knows METADATA_GLOBALS only."""

    dispatch: ClassVar[dict[int, Any]] = dict(_Unpickler.dispatch)
    for code in (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID, pickle.BINPERSID, pickle.INST, pickle.OBJ):
        del dispatch[code[0]]  # operations that no checkpoint needs

    def find_class(self, module: Any, name: Any) -> Any:
        if (module, name) == ("builtins", "getattr"):  # how Python 3.11.0 to 3.11.3 pickle members of enumerations
            return _member
        if f"{module}.{name}" not in METADATA_GLOBALS or "." in name:
            raise _Foreign(f"{module}.{name}")
        return super().find_class(module, name)

    def load_build(self) -> None:
        target = self.stack[-2]
        if isinstance(target, type) or not dataclasses.is_dataclass(target):
            raise _Foreign(f"attributes of {target!r}"[:100])
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


def _member(*arguments: Any) -> _MEM_FORMAT_ENCODING:
    """What getattr may do: find a member of the one enumeration in checkpoints."""
    for name, member in _MEM_FORMAT_ENCODING.__members__.items():
        if arguments == (_MEM_FORMAT_ENCODING, name):
            return member
    raise _Foreign("builtins.getattr")
