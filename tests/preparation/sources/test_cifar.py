"""CIFAR as its authors distribute it."""

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.picture_sets import write_folder, write_tar
from recipe.preparation.sources.cifar import CifarSource
from recipe.preparation.sources.items import PreparationError
from recipe.preparation.sources.opening import open_source

NAMES = [b"airplane", b"automobile", b"bird"]


def pixels(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


IN_PYTHON: Any = vars(pickle)["_Pickler"]  # which can be taught, unlike the one in C


class Python2(IN_PYTHON):
    """Writes bytes as Python 2 wrote its strings."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if type(obj) is not bytes or id(obj) in self.memo:
            super().save(obj, save_persistent_id)
            return
        short = len(obj) < 256
        opcode = pickle.SHORT_BINSTRING if short else pickle.BINSTRING
        self.write(opcode + len(obj).to_bytes(1 if short else 4, "little") + obj)
        self.memoize(obj)


def of_python_2(table: dict[bytes, Any]) -> bytes:
    """The pickle as Python 2 and NumPy 1 wrote it: strings of bytes, and NumPy's module of then."""
    file = io.BytesIO()
    Python2(file, protocol=2).dump(table)
    assert b"_codecs" not in file.getvalue()
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def batch(seed: int, count: int, labels: bytes = b"labels") -> dict[bytes, Any]:
    return {b"data": pixels(seed, count), labels: [index % 3 for index in range(count)], b"batch_label": b"a batch"}


def cifar_10(**replaced: bytes | None) -> dict[str, bytes]:
    files: dict[str, bytes | None] = {f"data_batch_{number}": of_python_2(batch(number, 4)) for number in range(1, 6)}
    files |= {"test_batch": of_python_2(batch(9, 3)), "batches.meta": of_python_2({b"label_names": NAMES})}
    return {f"cifar-10-batches-py/{name}": data for name, data in (files | replaced).items() if data is not None}


def cifar_100() -> dict[str, bytes]:
    meta = {b"fine_label_names": NAMES, b"coarse_label_names": [b"things"]}
    files = {"train": batch(1, 6, b"fine_labels"), "test": batch(2, 2, b"fine_labels"), "meta": meta}
    return {f"cifar-100-python/{name}": of_python_2(table) for name, table in files.items()}


@pytest.mark.parametrize("place", ["tar", "folder"])
def test_pictures_and_labels_of_the_part(place: str, tmp_path: Path):
    if place == "tar":
        path = write_tar(tmp_path / "cifar-10-python.tar.gz", cifar_10(), "w:gz")
    else:
        path = write_folder(tmp_path, cifar_10()) / "cifar-10-batches-py"
    source = open_source(str(path))
    assert isinstance(source, CifarSource) and len(source.items) == 20
    assert source.class_names == ["airplane", "automobile", "bird"]
    assert [item.label for item in source.items[:5]] == [0, 1, 2, 0, 0]
    assert source.items[4].name == "data_batch_2[0]"
    assert np.array_equal(np.asarray(source.read(5)), pixels(2, 4)[1].reshape(3, 32, 32))  # red, then green, then blue
    test = open_source(str(path), split="test")
    assert len(test.items) == 3 and np.array_equal(np.asarray(test.read(0)), pixels(9, 3)[0].reshape(3, 32, 32))


def test_a_copy_that_python_3_pickled(tmp_path: Path):
    again = {name: pickle.dumps(pickle.loads(data, encoding="bytes"), 2) for name, data in cifar_10().items()}
    assert len(open_source(str(write_tar(tmp_path / "cifar.tar", again))).items) == 20


def test_cifar_100_by_its_fine_labels(tmp_path: Path):
    source = open_source(str(write_tar(tmp_path / "cifar-100-python.tar.gz", cifar_100(), "w:gz")))
    assert len(source.items) == 6 and source.label_dim() == 3 and [item.label for item in source.items] == [0, 1, 2] * 2


class Runs:
    """Pickles as a call that makes a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def damaged(mark: Path) -> dict[str, tuple[dict[str, bytes | None], str]]:
    few = batch(1, 4) | {b"labels": [0]}
    return {
        "a call": ({"data_batch_3": pickle.dumps(Runs(mark), 2)}, r"data_batch_3 is damaged .*posix\.system"),
        "cut": ({"data_batch_3": of_python_2(batch(3, 4))[:900]}, "data_batch_3 is damaged"),
        "no table": ({"batches.meta": pickle.dumps([1], 2)}, r"batches\.meta is not a table"),
        "other arrays": (
            {"data_batch_1": of_python_2({b"data": pixels(1, 4)[:, :9], b"labels": [0] * 4})},
            "data_batch_1 does not hold pictures of 3x32x32",
        ),
        "objects": (
            {"data_batch_1": of_python_2({b"data": np.array([[None] * 3072]), b"labels": [0]})},
            "data_batch_1 does not hold pictures",
        ),
        "few labels": ({"data_batch_1": of_python_2(few)}, "has 17 labels for 20 pictures"),
        "odd labels": ({"data_batch_1": of_python_2(batch(1, 1) | {b"labels": [-2]})}, "holds no list of class ids"),
        "a batch missing": ({"data_batch_5": None}, "holds no data_batch_5"),
    }


@pytest.mark.parametrize("case", damaged(Path("x")))
def test_a_damaged_or_hostile_copy_is_one_line(case: str, tmp_path: Path):
    mark = tmp_path / "mark"
    replaced, said = damaged(mark)[case]
    path = write_tar(tmp_path / "cifar-10-python.tar.gz", cifar_10(**replaced), "w:gz")
    with pytest.raises(PreparationError, match=said) as caught:
        open_source(str(path))
    assert "\n" not in str(caught.value) and not mark.exists()


def test_splits_are_its_own_two(tmp_path: Path):
    path = write_tar(tmp_path / "cifar.tar", cifar_10())
    with pytest.raises(PreparationError, match=r"--split val: .* has train and test; name one of them"):
        open_source(str(path), split="val")
    with pytest.raises(PreparationError, match="--split test: only Hugging Face data sets and CIFAR have splits"):
        open_source(str(write_tar(tmp_path / "other.tar", {"a/b.txt": b""})), split="test")
