"""Tensors of pickles that were read as data (`recipe.weights.inert_pickles`).

A tensor is a record of a storage, an offset, a shape and strides. Within a plain pickle the storage is bytes that
`torch.save` wrote in its old format, five short pickles and the numbers, which are read here in the same inert way;
within an archive of `torch.save` it is a file of the archive.
"""

import io
import math
import struct
import zipfile
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Protocol, TypeGuard

import torch
from torch import Tensor

from recipe.weights.inert_pickles import Name, PickleError, Record, one_line, read_pickle

TENSOR, PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
BYTES = "torch.storage._load_from_bytes"
DTYPES = {
    "torch.HalfStorage": torch.float16, "torch.BFloat16Storage": torch.bfloat16, "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64, "torch.LongStorage": torch.int64, "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16, "torch.CharStorage": torch.int8, "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}  # fmt: skip
TENSOR_NAMES = {TENSOR, PARAMETER, BYTES, "collections.OrderedDict", *DTYPES}
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001  # what the old format of torch.save begins with


class Storages(Protocol):
    """Where the numbers of tensors come from."""

    def read(self, reference: object) -> tuple[torch.dtype, bytes]:
        """Type and numbers of a storage; raises PickleError if it is none, or was read before."""
        ...


def tensor_from(value: object, storages: Storages, where: str) -> Tensor:
    """The tensor that a record stands for, with memory of its own.

    Args:
        where: its name, for messages.

    Raises:
        PickleError: it is no tensor, or one that its storage does not hold.
    """
    if isinstance(value, Record) and value.name == PARAMETER and value.arguments:
        value = value.arguments[0]
    if not isinstance(value, Record) or value.name != TENSOR or len(value.arguments) < 4:
        raise PickleError(f"no tensor as {where}")
    reference, offset, shape, strides = value.arguments[:4]
    if not (_is_count(offset) and _are_counts(shape) and _are_counts(strides) and len(shape) == len(strides)):
        raise PickleError(f"a tensor {where} of a shape that none can have")
    dtype, data = storages.read(reference)
    # Its elements must lie side by side, in whatever order: a stride of 0 would make terabytes of one number.
    count = math.prod(shape)
    span = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1 if count else 0
    if span != count or (offset + span) * dtype.itemsize > len(data) or not _is_dense(shape, strides):
        raise PickleError(f"a tensor {where} that its storage does not hold")
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    part = bytearray(memoryview(data)[offset * dtype.itemsize : (offset + span) * dtype.itemsize])
    return torch.frombuffer(part, dtype=dtype).as_strided(shape, strides).contiguous()


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**48


def _are_counts(values: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(values, tuple) and len(values) <= 8 and all(map(_is_count, values))


def _is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether each dimension steps over exactly what the finer ones cover."""
    covered = 1
    for stride, size in sorted((stride, size) for size, stride in zip(shape, strides, strict=True) if size != 1):
        if stride != covered:
            return False
        covered *= size
    return True


class EmbeddedStorages:
    """Storages that lie in a plain pickle, as bytes of torch.save's old format."""

    def __init__(self) -> None:
        self._read: set[int] = set()

    def read(self, reference: object) -> tuple[torch.dtype, bytes]:
        if not isinstance(reference, Record) or reference.name != BYTES or len(reference.arguments) != 1:
            raise PickleError("a storage that is none")
        data = reference.arguments[0]
        if not isinstance(data, bytes):
            raise PickleError("a storage that is none")
        if id(data) in self._read:  # a small file must not become a large network
            raise PickleError("a storage that several tensors share")
        self._read.add(id(data))
        return storage_from_bytes(data)


def storage_from_bytes(data: bytes) -> tuple[torch.dtype, bytes]:
    """Type and numbers of the one storage that torch.save wrote in its old format. Raises PickleError."""
    stream = io.BytesIO(data)
    if read_pickle(stream, ()) != _MAGIC or read_pickle(stream, ()) != _VERSION:
        raise PickleError("a storage in a format of another torch")
    system = read_pickle(stream, ())
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise PickleError("a storage of a machine that is not little-endian")
    dtype, key, count = storage_reference(read_pickle(stream, DTYPES))
    keys = read_pickle(stream, ())
    length = stream.read(8)
    numbers = stream.read()
    whole = len(length) == 8 and struct.unpack("<q", length)[0] == count and len(numbers) == count * dtype.itemsize
    if keys != [key] or not whole:
        raise PickleError("a storage that is cut short or has something behind it")
    return dtype, numbers


def storage_reference(value: object) -> tuple[torch.dtype, str, int]:
    """Type, key and number of elements of the storage that a persistent identifier names. Raises PickleError."""
    if isinstance(value, Record) and value.name == "" and isinstance(value.arguments[0], tuple):
        match value.arguments[0]:
            case ("storage", Name(text), str(key), str(), int(count), *_) if text in DTYPES and count >= 0:
                return DTYPES[text], key, count
    raise PickleError("a storage that is none")


class ArchivedStorages:
    """Storages that are files of an archive of torch.save.

    Args:
        archive: nothing in it is packed, as torch.save leaves it, and no two files overlap.
        root: its top folder.
    """

    def __init__(self, archive: zipfile.ZipFile, root: str):
        self._archive, self._root = archive, root
        self._read: set[str] = set()

    def read(self, reference: object) -> tuple[torch.dtype, bytes]:
        dtype, key, count = storage_reference(reference)
        if key in self._read:
            raise PickleError("a storage that several tensors share")
        self._read.add(key)
        try:
            data = self._archive.read(f"{self._root}/data/{key}")
        except KeyError:
            raise PickleError(f"a storage {one_line(key)} that is not there") from None
        if len(data) != count * dtype.itemsize:
            raise PickleError(f"a storage {one_line(key)} that is cut short")
        return dtype, data


def open_archive(archive: zipfile.ZipFile, size: int, allowed: set[str]) -> tuple[object, ArchivedStorages]:
    """The object of an archive that torch.save wrote, as data, and its storages.

    Args:
        size: of the file, bytes.
        allowed: names that the pickle may mention beside those of tensors.

    Raises:
        PickleError: it is no such archive, or one with more in it than torch.save writes.
    """
    entries = archive.infolist()
    pickles = [PurePosixPath(entry.filename) for entry in entries if entry.filename.endswith("/data.pkl")]
    if len(pickles) != 1 or len(pickles[0].parts) != 2 or len({entry.filename for entry in entries}) < len(entries):
        raise PickleError("an archive that torch.save did not write")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(e.file_size for e in entries) > size:
        raise PickleError("an archive with packed files, which torch.save does not write")
    top = read_pickle(io.BytesIO(archive.read(str(pickles[0]))), TENSOR_NAMES | allowed)
    return top, ArchivedStorages(archive, pickles[0].parts[0])
