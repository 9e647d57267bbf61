"""What folders and files beside pictures mean: classes, parts of a data set, metadata, a data set packed again."""

import json
import re
import zipfile
from pathlib import Path

import pytest

from helpers.picture_sets import noise, official_zip, png, write_folder, write_zip
from recipe.preparation.sources.items import PreparationError
from recipe.preparation.sources.layout import different_parts, part_of
from recipe.preparation.sources.opening import open_source

PICTURE = png(noise(8, 8, 0))


def opened(folder: Path, *names: str, **texts: str):
    """A folder of pictures and texts ("__" in their names stands for "/", "_" for ".")."""
    files = dict.fromkeys(names, PICTURE)
    files |= {name.replace("__", "/").replace("_", "."): text.encode() for name, text in texts.items()}
    return open_source(str(write_folder(folder, files)))


def ids(source) -> dict[str, int]:
    return {item.name: item.label for item in source.items}


def test_folders_called_by_numbers_are_sorted_as_numbers(tmp_path: Path):
    source = opened(tmp_path / "a", *(f"{number}/x.png" for number in range(12)))
    assert source.class_names == [str(number) for number in range(12)]
    assert ids(source) == {f"{number}/x.png": number for number in range(12)}
    assert source.remarks == []
    assert opened(tmp_path / "b", "10.0/x", "9.5/x", "-3/x").class_names == ["-3", "9.5", "10.0"]
    mixed = opened(tmp_path / "c", "10/x", "9/x", "b/x", "B/x")
    assert mixed.class_names == ["9", "10", "B", "b"]
    assert 'the classes "B" and "b" differ by capital letters alone' in mixed.remarks[0]


def test_numbers_that_are_not_the_ids_are_told_or_refused(tmp_path: Path):
    source = opened(tmp_path / "a", *(f"{number}/x.png" for number in range(1, 12)))
    assert ids(source)["1/x.png"] == 0 and ids(source)["11/x.png"] == 10
    assert "their ids are their places in order: folder 1 is class 0, folder 11 is class 10" in source.remarks[0]
    with pytest.raises(PreparationError, match="the folders 01 and 1 are the same number; rename or join them"):
        opened(tmp_path / "b", "1/x.png", "01/x.png")
    with pytest.raises(PreparationError, match="a class folder is called -1; pictures without a class lie beside"):
        opened(tmp_path / "c", "-1/x.png", "0/x.png")


SPLITS = {
    "the same classes": (["test/cat/1.png", "test/dog/2.png", "train/cat/3.png", "train/dog/4.png"], "train"),
    "capitals": (["Training/cat/1.png", "Testing/cat/2.png"], "Training"),
    "three": (["valid/cat/1.png", "test/dog/2.png", "train/cat/3.png"], "train"),
    "without train": (["val/cat/1.png", "test/cat/2.png"], "test"),
    "without classes": (["train/1.png", "test/2.png"], "train"),
    "years": (["train2017/1.png", "val2017/2.png"], "train2017"),
    "words before": (["seg_train/seg_train/sea/1.png", "seg_test/seg_test/sea/2.png", "seg_pred/3.png"], "seg_train"),
    "sets": (["training_set/cat/1.png", "test_set/cat/2.png"], "training_set"),
    "no labels": (["train/cat/1.png", "unlabeled/2.png"], "train"),
    "two in one": (["trainval/cat/1.png", "test/2.png"], "trainval"),
    "in a folder": (["top/in/train/cat/1.png", "top/in/test/cat/2.png"], "top/in/train"),
    "beside others": (["train/cat/1.png", "test/cat/2.png", "extra/3.png"], "train"),
}


@pytest.mark.parametrize("case", SPLITS)
def test_parts_of_a_data_set_are_no_classes(tmp_path: Path, case: str):
    names, train = SPLITS[case]
    with pytest.raises(PreparationError, match="are parts of a data set, not classes") as error:
        opened(tmp_path / "data", *names)
    assert str(error.value).endswith(f"; name {tmp_path}/data/{train}")
    with pytest.raises(PreparationError, match=f"; unpack it and name the folder {train}$"):
        open_source(str(write_zip(tmp_path / "data.zip", dict.fromkeys(names, PICTURE))))
    open_source(str(tmp_path / "data" / train))


def test_classes_may_be_called_train_or_test_something(tmp_path: Path):
    assert opened(tmp_path / "a", "bus/1.png", "car/2.png", "train/3.png").class_names == ["bus", "car", "train"]
    assert opened(tmp_path / "b", "test tube/1.png", "train station/2.png", "beaker/3.png").class_names is not None
    assert part_of("train2017") == ("train", "") and part_of("seg_valid") == ("val", "seg")
    assert part_of("train_test") is None and part_of("restaurant") is None
    assert different_parts(["a-train-0", "a-train-1", "b-val-0"]) == []


def test_a_label_file_may_speak_of_several_parts(tmp_path: Path):
    data = write_folder(tmp_path / "data", dict.fromkeys(["train/1.png", "test/2.png"], PICTURE))
    (tmp_path / "l.csv").write_text("train/1.png,4\ntest/2.png,-1\n")
    assert ids(open_source(str(data), labels=tmp_path / "l.csv")) == {"test/2.png": -1, "train/1.png": 4}


def test_files_that_are_no_pictures_do_not_make_classes(tmp_path: Path):
    names = ["train/cat/1.png", "train/dog/2.png"]
    source = opened(tmp_path / "data", *names, README_md="x", notes__x_txt="x")
    assert source.class_names == ["cat", "dog"]
    assert ids(source) == {"README.md": -1, "notes/x.txt": -1, "train/cat/1.png": 0, "train/dog/2.png": 1}


def test_empty_folders_are_no_classes_and_told(tmp_path: Path):
    (tmp_path / "data" / "bear").mkdir(parents=True)
    source = opened(tmp_path / "data", "cat/1.png", "dog/2.png")
    assert source.class_names == ["cat", "dog"]
    assert source.remarks == [f"{tmp_path}/data: empty folders are no classes: bear/"]


def test_imagenet_below_a_folder(tmp_path: Path):
    names = ["CLS-LOC/train/n01440764/1.JPEG", "CLS-LOC/train/n02119789/1.JPEG", "CLS-LOC/val/1.JPEG"]
    source = opened(tmp_path / "data", *names)
    assert ids(source) == {names[0]: 0, names[1]: 1}
    assert "only train/ is used" in source.remarks[0]


def test_zip_files_of_windows_have_folders(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("cat\\1.png", "dog\\2.png"):
            entry = zipfile.ZipInfo()
            entry.filename = name.replace("\\\\", "\\")
            archive.writestr(entry, PICTURE)
    source = open_source(str(tmp_path / "a.zip"))
    assert ids(source) == {"cat/1.png": 0, "dog/2.png": 1}
    assert source.read(1) == PICTURE


def test_an_official_data_set_packed_again_below_a_folder(tmp_path: Path):
    with zipfile.ZipFile(official_zip(tmp_path / "official.zip")) as archive:
        files = {f"img16/{name}": archive.read(name) for name in archive.namelist()}
    expected = {f"img16/{item.name}": item.label for item in open_source(str(tmp_path / "official.zip")).items}
    assert ids(open_source(str(write_zip(tmp_path / "again.zip", files)))) == expected
    assert len(set(expected.values())) == 5
    two = {f"{top}/{name}": data for name, data in files.items() for top in "ab"}
    with pytest.raises(PreparationError, match=r"several data sets, a/img16/dataset\.json and b/img16/dataset"):
        open_source(str(write_zip(tmp_path / "two.zip", two)))


METADATA = {
    "metadata_jsonl": '{"file_name": "1.png", "label": 2}\n{"file_name": "sub/2.png", "label": 0}\n',
    "metadata_csv": "file_name,caption,label\n1.png,a dog,2\nsub/2.png,a cat,0\n",
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_of_hugging_face(tmp_path: Path, name: str):
    source = opened(tmp_path / "a", "1.png", "sub/2.png", **{name: METADATA[name]})
    assert ids(source) == {"1.png": 2, "sub/2.png": 0}
    other = '{"file_name": "1.png", "label": 1}' if "json" in name else "file_name,label\n1.png,1\n"
    texts = {f"x__{name}": METADATA[name], f"y__{name}": other}
    source = opened(tmp_path / "b", "x/1.png", "x/sub/2.png", "y/1.png", **texts)
    assert ids(source) == {"x/1.png": 2, "x/sub/2.png": 0, "y/1.png": 1}
    given = open_source(str(tmp_path / "a"), labels=tmp_path / "a" / name.replace("_", "."))
    assert ids(given) == {"1.png": 2, "sub/2.png": 0}
    with pytest.raises(PreparationError, match="train/ and test/ are parts of a data set"):
        opened(tmp_path / "c", "train/1.png", "test/2.png", **{f"train__{name}": METADATA[name]})


def test_metadata_without_labels_are_not_used(tmp_path: Path):
    captions = json.dumps({"file_name": "a/1.png", "text": "a dog"})
    source = opened(tmp_path / "data", "a/1.png", "b/2.png", metadata_jsonl=captions)
    assert ids(source) == {"a/1.png": 0, "b/2.png": 1}
    assert re.search(r"has no column of labels among file_name, text; .* not used", source.remarks[0])
    with pytest.raises(PreparationError, match=r"gives no label to 1 of 2 files, the first b/2\.png"):
        opened(tmp_path / "gap", "a/1.png", "b/2.png", metadata_csv="file_name,label\na/1.png,3\n")
