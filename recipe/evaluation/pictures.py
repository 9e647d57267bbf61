"""Pictures that are there: of whatever prepare.py reads, and of `.npz` files as ADM's evaluator has them.

They are decoded in processes of their own, since one decodes fewer pictures a second than a GPU looks at.
"""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from recipe.data.index import facts_at
from recipe.evaluation.feature_set import EvaluationError
from recipe.evaluation.measuring import Numbered
from recipe.preparation.decoding import read_item
from recipe.preparation.first_look import first_look
from recipe.preparation.pictures import PictureFormat
from recipe.preparation.sources.items import Item, ItemError, Source, items_hash, shown, spread
from recipe.preparation.sources.mds import MdsSource
from recipe.preparation.sources.opening import described, open_source
from recipe.preparation.sums import images_per_class
from recipe.ranks import Ranks

ARRAYS = ".npz"
FEW = 256  # pictures that are not worth the start of processes


class ArraySource(Source):
    """The pictures arr_0, uint8 [N, H, W, C], of an `.npz` file, and their labels arr_1, if there are any.

    Raises:
        EvaluationError: it holds no such arrays.
    """

    def __init__(self, path: Path):
        try:
            with zipfile.ZipFile(path) as archive:
                entry = archive.getinfo("arr_0.npy")
                self.pictures = _mapped(path, archive, entry)
                has_labels = "arr_1.npy" in archive.namelist()
            labels = np.load(path, allow_pickle=False)["arr_1"].tolist() if has_labels else [-1] * len(self.pictures)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            reason = " ".join(str(error).split())[:200]
            raise EvaluationError(f"{path}: holds no pictures arr_0 that can be read ({reason})") from None
        array = self.pictures
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] not in (1, 3) or len(labels) != len(array):
            raise EvaluationError(f"{path}: arr_0 is {array.dtype} {list(array.shape)}, but must be uint8 [N, H, W, 3]")
        size = array[0].nbytes if len(array) else 0
        self.items = [Item(f"arr_0[{index}]", size, int(label)) for index, label in enumerate(labels)]

    def read(self, index: int) -> NDArray[np.uint8]:
        return np.ascontiguousarray(self.pictures[index].transpose(2, 0, 1))


def _mapped(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NDArray[np.uint8]:
    """An array of the archive; one that is not compressed stays on disk."""
    if entry.compress_type != zipfile.ZIP_STORED:
        return np.load(path, allow_pickle=False)["arr_0"]
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        header = file.tell()
    with open(path, "rb") as raw:
        raw.seek(entry.header_offset + 26)  # of the local header: lengths of name and extra, which differ from the list
        lengths = np.frombuffer(raw.read(4), "<u2")
    start = entry.header_offset + 30 + int(lengths.sum()) + header
    if dtype.hasobject or entry.file_size != header + dtype.itemsize * int(np.prod([1, *shape], dtype=object)):
        raise ValueError(f"an array of {dtype} {list(shape)}")
    return np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")


@dataclass(frozen=True)
class PictureSet:
    """Pictures of one size.

    Attributes:
        where: that they are from, as the user has it.
        source: reads them.
        form: brings each to the size.
        chosen: which of them are taken.
    """

    where: str
    source: Source
    form: PictureFormat
    chosen: Sequence[int]

    def facts(self) -> Mapping[str, Any]:
        """Entries of `About` that these pictures decide."""
        items = [self.source.items[index] for index in self.chosen]
        labels = np.array([item.label for item in items], dtype=np.int64)
        return {
            "resolution": self.form.resolution,
            "source": described(self.where),
            "source_hash": items_hash(items),
            "crop": self.form.crop if self.form.resize else self._crop_before(),
            "images_per_class": images_per_class(labels),
        }

    def _crop_before(self) -> str | None:
        """How prepare.py cropped what it wrote into shards."""
        if not isinstance(self.source, MdsSource):
            return None
        settings = getattr(facts_at(self.source.shards.place), "settings", None) or {}
        crop = settings.get("crop")
        return crop if isinstance(crop, str) else None

    def share(self, ranks: Ranks, rows: int, workers: int) -> Iterator[Numbered]:
        """This rank's part, whole calls of `rows` pictures, each numbered by its place among the chosen.

        Args:
            workers: processes that decode; 0 = this one.

        Raises:
            EvaluationError: the first picture that cannot be used.
        """
        numbers = range(len(self.chosen))
        mine = [list(numbers[start : start + rows]) for start in numbers[ranks.rank * rows :: rows * ranks.size]]
        few = sum(map(len, mine)) < FEW
        loader = DataLoader(
            _Decoded(self),
            batch_sampler=mine,
            num_workers=0 if few else workers,
            collate_fn=_together,
            multiprocessing_context="fork" if workers and not few else None,
        )
        for batch in loader:
            if isinstance(batch, str):
                raise EvaluationError(f"{self.where}: {batch}; take it away, or repair it")
            yield batch[0], torch.from_numpy(batch[1])


class _Decoded(Dataset):
    """Pictures by number; a reason in place of one that cannot be used, as errors come out of processes at length."""

    def __init__(self, pictures: PictureSet):
        self.pictures = pictures

    def __getitem__(self, number: int) -> tuple[int, NDArray[np.uint8] | str]:
        source, index = self.pictures.source, self.pictures.chosen[number]
        try:
            return number, self.pictures.form(read_item(source, index))
        except ItemError as error:
            return number, f"{shown(source.items[index].name)} {error}"


def _together(items: list[tuple[int, NDArray[np.uint8] | str]]) -> tuple[list[int], NDArray[np.uint8]] | str:
    reasons = [picture for _, picture in items if isinstance(picture, str)]
    if reasons:
        return reasons[0]
    return [number for number, _ in items], np.stack([picture for _, picture in items if not isinstance(picture, str)])


def open_pictures(
    where: str,
    resolution: int | None = None,
    crop: str | None = None,
    count: int | None = None,
    split: str | None = None,
) -> PictureSet:
    """The pictures, as RGB, of a folder, archive, MDS shards, Hugging Face data set or `.npz` file.

    Args:
        where: as `prepare.py` takes it, or an `.npz` file.
        resolution: that they are brought to; None = that of the first, which all must have.
        crop: how, as in `prepare.py`.
        count: so many of them, evenly spread; None = all.
        split: of a Hugging Face data set.

    Raises:
        EvaluationError, PreparationError: nothing that can be read, no pictures, or fewer than asked for.
    """
    source = (
        ArraySource(Path(where))
        if Path(where).suffix.lower() == ARRAYS
        else open_source(where, resolution, None, split)
    )
    if source.holds_latents:
        raise EvaluationError(f"{where}: holds latents, but statistics are of pictures; name the pictures")
    have = len(source.items)
    if have < (count or 1):
        raise EvaluationError(f"--num {count}: {where} has only {have} pictures" if count else f"{where}: is empty")
    size, _ = first_look(source)
    if resolution is None and size[0] != size[1]:
        raise EvaluationError(f"{where}: the first picture has {size[0]}x{size[1]} pixels; give --resolution")
    form = PictureFormat(resolution or size[0], crop or "center-crop", resolution is not None)
    return PictureSet(where, source, form, range(have) if count is None else spread(have, count))
