"""Checkpoints are pickles, and a pickle can run any code. These are read only if they name nothing but what they need.

torch and Composer unpickle checkpoints without restriction. Before anything here is unpickled, a simulated pickle
machine goes through it that resolves each global to an inert class: nothing is imported or called, and no trick of
opcodes, memo or computed names hides a global from it. What passes is then read by an unpickler that knows the same
globals only.
"""

import io
import pickle
import zipfile
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata

from recipe.command_line import UserError

METADATA = ".metadata"
_STORAGES = ["BFloat16", "Half", "Float", "Double", "Byte", "Char", "Short", "Int", "Long", "Bool"]
_DTYPES = ["bfloat16", "float16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool"]
_DCP = [
    "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
    "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
]  # fmt: skip
ALLOWED = frozenset(
    # What checkpoints of this recipe name, and the other number types of torch. Each is harmless whatever it is called
    # with: never add what calls or unpickles an argument, such as torch.storage._load_from_bytes, or getattr as such.
    {
        ("_codecs", "encode"),  # how protocol 2 writes bytes
        ("collections", "OrderedDict"),
        ("datetime", "timedelta"),  # Composer's clock
        ("numpy", "dtype"),  # these and the next: NumPy's random state, and scalars
        ("numpy", "ndarray"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("pathlib", "PosixPath"),
        ("torch", "Size"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch.serialization", "_get_layout"),
        ("torch.torch_version", "TorchVersion"),
    }
    | {("torch", f"{name}Storage") for name in _STORAGES}
    | {("torch", name) for name in _DTYPES}
    | {("torch.distributed.checkpoint.metadata", name) for name in _DCP}
)
_ENUM = ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING")
_GETATTR = ("builtins", "getattr")  # how Python 3.11.0 to 3.11.3 pickle a member of it; allowed for nothing else


class UntrustedPickle(UserError):
    """A file that names code which no checkpoint needs, or is no checkpoint at all; nothing of it was run."""


def check_checkpoint(path: Path) -> None:
    """Check every pickle of a checkpoint, a `.pt` file or the folder of a sharded one, without running anything.

    Raises:
        UntrustedPickle: naming the file and the foreign global.
    """
    if not path.is_dir():
        _check_archive(path, str(path))
        return
    metadata = read_metadata(path)
    for index, part in metadata.storage_data.items():  # pyright: ignore[reportOptionalMemberAccess]
        file = path / part.relative_path
        where = f"{file}, {index.fqn}"
        with open(file, "rb") as source:
            source.seek(part.offset)
            _check_archive(_Window(source, part.offset, part.length), where)


def load_pickle(data: bytes, where: str) -> Any:
    """Check and unpickle; `where` is for messages."""
    _check(io.BytesIO(data), where)
    return _RestrictedUnpickler(io.BytesIO(data)).load()


def load_torch(source: Path | io.BytesIO, where: str, mmap: bool = False) -> Any:
    """Check and read what `torch.save` wrote, onto the CPU; `mmap` leaves tensors of a file on disk until used."""
    _check_archive(source, where)
    if isinstance(source, io.BytesIO):
        source.seek(0)
    return torch.load(source, weights_only=False, pickle_module=_restricted, map_location="cpu", mmap=mmap)


def read_metadata(folder: Path) -> Metadata:
    """The table of contents of a sharded checkpoint.

    Raises:
        UntrustedPickle: foreign code, something else than metadata, or parts that lie outside the folder.
    """
    where = str(folder / METADATA)
    return check_metadata(load_pickle((folder / METADATA).read_bytes(), where), where)


def check_metadata(metadata: Any, where: str) -> Metadata:
    """The same object, if it is metadata whose parts are plain file names with sensible ranges."""
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
        raise UntrustedPickle(f"{where}: is not the metadata of a checkpoint; fetch it again from where it was made")
    for part in metadata.storage_data.values():
        name = part.relative_path
        if not isinstance(name, str) or name in ("", ".", "..") or PurePosixPath(name).name != name or "\\" in name:
            raise UntrustedPickle(f"{where}: names the part {name!r}, which is not a file beside it; do not load it")
        if not (isinstance(part.offset, int) and isinstance(part.length, int) and part.offset >= 0 <= part.length):
            raise UntrustedPickle(f"{where}: gives {name} the range {part.offset} + {part.length}; do not load it")
    return metadata


def _check_archive(source: Path | io.IOBase, where: str) -> None:
    """Check the one pickle in what `torch.save` writes: a zip whose only pickle is data.pkl."""
    try:
        with zipfile.ZipFile(source) as archive:  # pyright: ignore[reportArgumentType]
            names = archive.namelist()
            pickles = [name for name in names if PurePosixPath(name).name == "data.pkl"]
            foreign = [name for name in names if name.endswith((".pkl", ".py", ".pickle")) and name not in pickles]
            if len(pickles) != 1 or foreign or len(set(names)) < len(names):
                raise UntrustedPickle(f"{where}: holds {foreign or pickles}, not one data.pkl; do not load it")
            data = archive.read(pickles[0])
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError, OSError) as error:
        raise UntrustedPickle(
            f"{where}: is damaged or not in the format of torch.save ({error}); fetch it again"
        ) from None
    _check(io.BytesIO(data), where)


class _Window(io.RawIOBase):
    """A range of an open file as a file of its own."""

    def __init__(self, source: Any, offset: int, length: int):
        self._source, self._offset, self._length, self._position = source, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        if start + offset < 0:
            raise OSError("negative position")
        self._position = start + offset
        return self._position

    def read(self, size: int = -1) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        left = max(self._length - self._position, 0)
        self._source.seek(self._offset + self._position)
        data = self._source.read(left if size is None or size < 0 else min(size, left))
        self._position += len(data)
        return data


class _Inert:
    """Stands for whatever an allowed global would make: takes anything, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Inert":
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass

    def add(self, item: Any) -> None:
        pass


class _InertEnum(_Inert):
    pass


class _InertMember(_Inert):
    """Stands for getattr, which may name members of the one enumeration in checkpoints."""

    def __new__(cls, kind: Any, name: Any) -> "_InertMember":
        if not (isinstance(kind, type) and issubclass(kind, _InertEnum) and _is_member(name)):
            raise _Foreign(".".join(_GETATTR))
        return object.__new__(cls)


def _is_member(name: Any) -> bool:
    return isinstance(name, str) and name in _MEM_FORMAT_ENCODING.__members__


def _member(kind: Any, name: Any) -> _MEM_FORMAT_ENCODING:
    if kind is not _MEM_FORMAT_ENCODING or not _is_member(name):
        raise UntrustedPickle(f"its pickle names {'.'.join(_GETATTR)}, which no checkpoint needs")
    return kind[name]


class _Foreign(Exception):
    pass


class _Simulator(pickle._Unpickler):  # pyright: ignore[reportAttributeAccessIssue]
    """Goes through a pickle and makes nothing but inert objects and plain values."""

    def find_class(self, module: Any, name: Any) -> type:
        known = isinstance(module, str) and isinstance(name, str) and (module, name) in ALLOWED | {_GETATTR}
        if not known:
            raise _Foreign(f"{module}.{name}")
        kinds = {_ENUM: _InertEnum, _GETATTR: _InertMember}
        return type("Inert", (kinds.get((module, name), _Inert),), {})

    def get_extension(self, code: int) -> None:
        raise _Foreign(f"extension code {code}")

    def persistent_load(self, pid: Any) -> _Inert:
        kinds = (str, type, str, str, int)
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise _Foreign(f"persistent id {str(pid)[:60]}")
        if not all(isinstance(value, kind) for value, kind in zip(pid, kinds, strict=True)):
            raise _Foreign("persistent id of unknown types")
        return _Inert()


def _check(stream: io.BytesIO, where: str) -> None:
    size = len(stream.getbuffer())
    try:
        _Simulator(stream).load()
    except _Foreign as error:
        raise UntrustedPickle(
            f"{where}: its pickle names {error}, which no checkpoint needs; nothing of it was run: do not load it, and "
            "find out where it comes from"
        ) from None
    except RecursionError:
        raise UntrustedPickle(f"{where}: its pickle is nested too deeply; do not load it") from None
    except Exception as error:  # garbage can raise anything: it is refused all the same
        raise UntrustedPickle(
            f"{where}: is damaged or no pickle ({type(error).__name__}: {error}); fetch it again"
        ) from None
    if stream.tell() != size:
        raise UntrustedPickle(f"{where}: holds more than one pickle; do not load it")


class _RestrictedUnpickler(pickle.Unpickler):
    """Knows the allowed globals only."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == _GETATTR:
            return _member
        if (module, name) not in ALLOWED:
            raise UntrustedPickle(f"its pickle names {module}.{name}, which no checkpoint needs")
        return super().find_class(module, name)


def _load(file: Any, **kwargs: Any) -> Any:
    return _RestrictedUnpickler(file, **kwargs).load()


_restricted: Any = SimpleNamespace(Unpickler=_RestrictedUnpickler, load=_load, __name__="restricted pickle")
