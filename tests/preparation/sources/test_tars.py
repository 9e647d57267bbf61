"""Tars as WebDataset makes them: samples of several files, and data sets of several tars."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from helpers.picture_sets import noise, png, write_folder, write_tar
from recipe.preparation.pipeline import prepare
from recipe.preparation.sources.items import PreparationError, Source
from recipe.preparation.sources.opening import open_source
from recipe.preparation.sources.tars import expanded

LABELS = [3, 0, 2, 2, 1, 0]


def samples(first: int, last: int, **others: Any) -> dict[str, bytes]:
    """Files of samples: a picture, and for each other ending a text from the number of the sample."""
    files = {}
    for number in range(first, last):
        files[f"{number:06d}.png"] = png(noise(8, 8, number))
        for ending, text in others.items():
            files[f"{number:06d}.{ending}"] = text(number).encode()
    return files


def as_json(number: int) -> str:
    return json.dumps({"caption": "x", "label": LABELS[number]})


def as_class(number: int) -> str:
    return f"{LABELS[number]}\n"


def check(source: Source, count: int = len(LABELS)) -> None:
    assert [item.label for item in source.items] == LABELS[:count]
    for number in range(count):
        assert source.read(number) == png(noise(8, 8, number))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
@pytest.mark.parametrize("labels", [{"cls": as_class}, {"json": as_json}, {"cls": as_class, "json": lambda n: "{}"}])
def test_a_tar_of_samples(tmp_path: Path, mode: str, labels: dict[str, Any]):
    path = write_tar(tmp_path / "a.tar", samples(0, 6, txt=lambda number: "a picture", **labels), mode)
    source = open_source(str(path))
    check(source)
    used = next(iter(labels))
    assert re.search(rf"labels are those of the files \.{used}; not used: \..*txt", source.remarks[0])


def several(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for number, name in enumerate(names):
        write_tar(folder / name, samples(2 * number, 2 * number + 2, cls=as_class), "w:gz" if "gz" in name else "w")
    return folder


def test_several_tars_are_one_data_set(tmp_path: Path):
    folder = several(tmp_path / "data", "00000.tar", "00001.tar.gz", "00002.tar")
    (folder / "sizes.json").write_text("{}")
    source = open_source(str(folder))
    check(source)
    assert source.items[2].name == "00001.tar.gz/000002.png"
    assert "its tars are read, not sizes.json" in source.remarks[0]
    check(open_source(f"{folder}/00000.tar"), 2)
    with pytest.raises(
        PreparationError, match=r"1 of 4 files are missing, the first .*/00000\.tar\.gz; check the name"
    ):
        open_source(f"{folder}/{{00000.tar,00001.tar.gz,00002.tar,00000.tar.gz}}")
    check(open_source(f"{folder}/0000{{0.tar,1.tar.gz,2.tar}}"))
    facts = prepare(str(folder), tmp_path / "out", workers=2)
    assert facts.images_per_class == {"0": 2, "1": 1, "2": 2, "3": 1}


def test_braces():
    assert expanded("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expanded("{a,b}/{0..1}") == ["a/0", "a/1", "b/0", "b/1"]
    assert expanded("plain.tar") == ["plain.tar"]
    for text, message in {
        "{5..3}.tar": "must rise",
        "{x}.tar": "is neither a range",
        "{0..9999999}": "by less",
    }.items():
        with pytest.raises(PreparationError, match=message):
            expanded(text)


def test_tars_of_several_parts_are_refused(tmp_path: Path):
    folder = several(tmp_path / "data", "in-train-0.tar", "in-train-1.tar", "in-val-0.tar")
    with pytest.raises(PreparationError, match=r"in-train-0\.tar and in-val-0\.tar are of different parts"):
        open_source(str(folder))


def test_tars_of_synsets_are_classes(tmp_path: Path):
    folder = tmp_path / "data"
    folder.mkdir()
    for synset in ("n02119789", "n01440764"):
        write_tar(folder / f"{synset}.tar", {f"{synset}_{n}.JPEG": png(noise(8, 8, n)) for n in range(2)})
    source = open_source(str(folder))
    assert source.class_names == ["n01440764", "n02119789"]
    assert [(item.name.split("_")[1], item.label) for item in source.items] == [
        ("0.JPEG", 0),
        ("1.JPEG", 0),
        ("0.JPEG", 1),
        ("1.JPEG", 1),
    ]


def test_folders_inside_of_tars_are_classes_but_their_names_are_not(tmp_path: Path):
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(2):
        write_tar(folder / f"{number}.tar", {f"{name}/{number}.png": png(noise(8, 8, 0)) for name in ("b", "a")})
    source = open_source(str(folder))
    assert source.class_names == ["a", "b"]
    assert {item.name: item.label for item in source.items} == {
        "0.tar/a/0.png": 0,
        "0.tar/b/0.png": 1,
        "1.tar/a/1.png": 0,
        "1.tar/b/1.png": 1,
    }


def test_samples_without_labels(tmp_path: Path):
    captions = open_source(str(write_tar(tmp_path / "a.tar", samples(0, 3, txt=as_json))))
    assert [item.label for item in captions.items] == [-1, -1, -1]
    assert "its samples have no labels; not used: .txt" in captions.remarks[0]
    described = open_source(str(write_tar(tmp_path / "b.tar", samples(0, 3, json=lambda number: '{"url": "x"}'))))
    assert "its samples have no labels; not used: .json" in described.remarks[0]


REFUSED = {
    "a gap": (samples(0, 4, cls=as_class) | samples(4, 6), "gives no label to 2 of 6 files, the first 000004.png"),
    "two pictures": (
        {"1.in.png": b"", "1.out.png": b"", "1.cls": b"3"},
        "1.cls belongs to several pictures, 1.in.png and 1.out.png",
    ),
    "an empty label": (samples(0, 3, cls=lambda n: " \n"), "000000.png has an empty label; write -1"),
    "no text": (samples(0, 3) | {"000000.cls": b"\xff\xff"}, "000000.cls: cannot be read"),
    "no JSON": (samples(0, 3, json=lambda n: "{"), "000000.json: is not valid JSON"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_samples_are_refused(tmp_path: Path, case: str):
    files, message = REFUSED[case]
    with pytest.raises(PreparationError, match=re.escape(message)):
        open_source(str(write_tar(tmp_path / "a.tar", files)))


def test_samples_that_were_unpacked(tmp_path: Path):
    check(open_source(str(write_folder(tmp_path / "data", samples(0, 6, cls=as_class)))))


def test_dots_in_names(tmp_path: Path):
    picture = io.BytesIO(png(noise(8, 8, 0))).getvalue()
    files = {"a.v1.png": picture, "a.v2.png": picture, "a.v1.cls": b"1", "a.v2.cls": b"0"}
    source = open_source(str(write_tar(tmp_path / "a.tar", files)))
    assert {item.name: item.label for item in source.items} == {"a.v1.png": 1, "a.v2.png": 0}
