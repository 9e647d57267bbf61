"""Reads tensors of a safetensors file in object storage by ranged requests, without fetching the file."""

import itertools
import json
import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recipe.storage.places import Place

LONGEST_HEADER = 100 * 2**20  # bytes, as the safetensors library allows
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class TensorFileError(ValueError):
    """A file that is not in the safetensors format; the message says what is wrong with it."""


class TensorFile:
    """One file `name` of `place`; its header is read at once and checked, tensors when they are asked for.

    Attributes:
        metadata: the header's text entries.
        shapes: by tensor.
    """

    def __init__(self, place: Place, name: str):
        self.place = place
        self.name = name
        info = place.info(name)
        size = 0 if info is None else info.size
        self._version = None if info is None else info.version  # all reads must see one version of the file
        if size < 8:
            raise TensorFileError(f"has {size} bytes")
        (length,) = struct.unpack("<Q", place.read(name, 0, 8, self._version))
        if length > min(LONGEST_HEADER, size - 8):
            raise TensorFileError(f"announces a header of {length} bytes")
        try:
            header = json.loads(place.read(name, 8, length, self._version))
            self.metadata = _texts(header.pop("__metadata__", {}))
            self._entries = {key: _entry(value) for key, value in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise TensorFileError(f"its header is damaged ({error})") from None
        self._start = 8 + length
        self.shapes = {key: shape for key, (_, shape, _, _) in self._entries.items()}
        self._check_layout(size - self._start)

    def _check_layout(self, size: int) -> None:
        """Tensors must cover the file's data without gaps or overlaps, each with as many bytes as its shape needs."""
        end = 0
        for key, (dtype, shape, start, stop) in sorted(self._entries.items(), key=lambda entry: entry[1][2:]):
            count = 1
            for length in shape:
                count *= length
            if start != end or stop - start != count * dtype.itemsize:
                raise TensorFileError(f"its header gives {key} the bytes {start} to {stop}")
            end = stop
        if end != size:
            raise TensorFileError(f"holds {size} bytes of tensors, but its header describes {end}")

    def names(self) -> list[str]:
        """All tensors, as they lie in the file."""
        return sorted(self._entries, key=lambda key: self._entries[key][2:])

    def size(self, name: str) -> int:
        """Bytes of a tensor."""
        _, _, start, stop = self._entries[name]
        return stop - start

    def read(self, names: Sequence[str]) -> list[Tensor]:
        """Tensors in the order of the file, in one request if they lie side by side."""
        ranges = [self._entries[name][2:] for name in names]
        if any(left[1] != right[0] for left, right in itertools.pairwise(ranges)):
            return [tensor for name in names for tensor in self.read([name])]
        first = ranges[0][0]
        data = bytearray(self.place.read(self.name, self._start + first, ranges[-1][1] - first, self._version))
        return [self._tensor(name, data, start - first) for name, (start, _) in zip(names, ranges, strict=True)]

    def _tensor(self, name: str, data: bytearray, start: int) -> Tensor:
        dtype, shape, _, _ = self._entries[name]
        count = self.size(name) // dtype.itemsize
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(data, dtype=dtype, count=count, offset=start).reshape(shape)


def _texts(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError("__metadata__ is not a table of texts")
    return value


def _entry(value: dict[str, Any]) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    shape = tuple(value["shape"])
    start, stop = value["data_offsets"]
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, start, stop)):
        raise ValueError("negative or odd numbers")
    return DTYPES[value["dtype"]], shape, start, stop
