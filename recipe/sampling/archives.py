"""Pictures in one file: a ZIP as the official tools read it, a tar as WebDataset does, arrays as ADM's evaluator does.

An archive carries in itself which settings, seeds and labels it is of: a ZIP (and `.npz`, which is one) in its comment,
a tar in its global header. It is written beside its place, picture by picture, and renamed; its bytes depend on the
pictures alone.
"""

import io
import json
import re
import tarfile
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from recipe.sampling.distributed import Wanted
from recipe.sampling.outputs import FIX, LOOKERS, sweep
from recipe.sampling.settings import DrawnBy, differences, pictures_digest
from recipe.storage.addresses import split_address
from recipe.storage.own_pictures import not_own
from recipe.storage.places import Place, StorageError

MARK = "edm2-recipe samples "
LONGEST = 8192  # bytes at the end of a ZIP, or at the begin of a tar, within which the mark is
EPOCH = (1980, 1, 1, 0, 0, 0)  # of all files in a ZIP, so that equal pictures make equal archives
Read = Callable[[Wanted], bytes]


class Archive:
    """A file of pictures, by the ending of its name.

    Args:
        address: a local path or s3://bucket/prefix/name, ending with one of KINDS.
        wanted: the images, in order.
        settings: that they are drawn by.
    """

    def __init__(self, address: str, wanted: Sequence[Wanted], settings: DrawnBy):
        self.place, self.name = split_address(address)
        self.suffix = Path(self.name).suffix.lower()
        self.wanted = wanted
        self.mark = {**settings, "images": str(len(wanted)), "seeds and labels": pictures_digest(wanted)}

    def is_there(self, overwrite: bool) -> bool:
        """Whether the archive is there as it is asked for.

        Raises:
            StorageError: without `overwrite`, one of other settings or pictures, or a file of somebody else.
        """
        size = self.place.size(self.name)
        if size is None:
            if self.place.is_local and Path(self.place.address, self.name).is_dir():
                raise StorageError(f"{self.place.describe(self.name)}: is a folder; name a file")
            return False
        there = read_mark(self.place, self.name, size)
        if there == self.mark or overwrite:
            return there == self.mark
        if there is None:
            raise not_own(self.place.describe(self.name))
        raise StorageError(
            f"{self.place.describe(self.name)}: holds other pictures ({differences(there, self.mark)}); {FIX}"
        )

    def assemble(self, read: Read) -> None:
        """Write the archive from the PNGs of its pictures, all or nothing; one picture is in memory at a time."""
        self.place.make(self.name, lambda path: self._write(path, read))

    def _write(self, path: Path, read: Read) -> None:
        with open(path, "wb") as file:
            _WRITERS[self.suffix](file, self.wanted, _in_order(self.wanted, read), MARK + json.dumps(self.mark))

    def sweep(self, before: float) -> None:
        """Delete the temporary archives that killed processes left before a Unix time."""
        if self.place.is_local:
            sweep(Path(self.place.address), re.escape(self.name), before)


def _in_order(wanted: Sequence[Wanted], read: Read) -> Iterator[bytes]:
    """The PNGs, of which the next few are read meanwhile."""
    with ThreadPoolExecutor(LOOKERS) as pool:
        ahead: deque[Future[bytes]] = deque()
        for each in wanted:
            ahead.append(pool.submit(read, each))
            if len(ahead) == LOOKERS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _write_zip(file: IO[bytes], wanted: Sequence[Wanted], pictures: Iterator[bytes], mark: str) -> None:
    """00000/img00000000.png and so on, by the place in the list, and dataset.json with their labels."""
    labels: list[tuple[str, int]] = []
    with zipfile.ZipFile(file, "w") as archive:
        for index, (each, png) in enumerate(zip(wanted, pictures, strict=True)):
            name = f"{index // 1000:05d}/img{index:08d}.png"
            archive.writestr(zipfile.ZipInfo(name, EPOCH), png)
            labels.append((name, each.label))
        known = any(label >= 0 for _, label in labels)
        text = json.dumps({"labels": labels if known else None})
        archive.writestr(zipfile.ZipInfo("dataset.json", EPOCH), text)
        archive.comment = mark.encode()


def _write_tar(file: IO[bytes], wanted: Sequence[Wanted], pictures: Iterator[bytes], mark: str) -> None:
    """SEED.png and, with labels, SEED.cls of each picture, one after the other."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": mark}) as archive:
        for each, png in zip(wanted, pictures, strict=True):
            members = {"png": png} | ({"cls": str(each.label).encode()} if each.label >= 0 else {})
            for suffix, data in members.items():
                member = tarfile.TarInfo(f"{each.seed:06d}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def _write_npz(file: IO[bytes], wanted: Sequence[Wanted], pictures: Iterator[bytes], mark: str) -> None:
    """arr_0: uint8 [N, H, W, 3]; with labels, arr_1: int64 [N]."""
    labels = np.array([each.label for each in wanted], dtype=np.int64)
    with zipfile.ZipFile(file, "w") as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy", EPOCH), "w", force_zip64=True) as array:
            for index, png in enumerate(pictures):
                pixels = _rgb(png)
                if index == 0:
                    _write_header(array, (len(wanted), *pixels.shape), "|u1")
                array.write(pixels.tobytes())
        if (labels >= 0).any():
            with archive.open(zipfile.ZipInfo("arr_1.npy", EPOCH), "w", force_zip64=True) as array:
                _write_header(array, labels.shape, "<i8")
                array.write(labels.astype("<i8").tobytes())
        archive.comment = mark.encode()


def _rgb(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def _write_header(file: IO[bytes], shape: tuple[int, ...], kind: str) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})


_WRITERS = {".zip": _write_zip, ".tar": _write_tar, ".npz": _write_npz}
KINDS = tuple(_WRITERS)


def read_mark(place: Place, name: str, size: int) -> Mapping[str, str] | None:
    """What an archive says of itself; None if it is not from this command."""
    length = min(size, LONGEST)
    data = place.read(name, 0 if name.lower().endswith(".tar") else size - length, length)
    start = data.rfind(MARK.encode())
    if start < 0:
        return None
    try:
        return json.JSONDecoder().raw_decode(data[start + len(MARK) :].decode(errors="replace"))[0]
    except ValueError:
        return None
