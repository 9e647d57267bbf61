"""Labels as people and tools write them: the classes that are meant, or one error that says what to write."""

import json
import re
import unicodedata
from pathlib import Path

import pytest

from helpers.picture_sets import noise, png, write_folder
from recipe.preparation.class_line import class_line
from recipe.preparation.sources.items import PreparationError, Source
from recipe.preparation.sources.labels import class_ids
from recipe.preparation.sources.opening import open_source

COUNT = 12
FILES = [f"im{index}.png" for index in range(COUNT)]
PICTURE = png(noise(8, 8, 0))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("pictures") / "imgs", dict.fromkeys(FILES, PICTURE))


def table(pattern: str, head: str = "", labels: list | None = None) -> str:
    """A line by `pattern` for each of FILES, whose labels are their numbers unless given."""
    given = labels or list(range(COUNT))
    lines = [
        pattern.format(file=name, stem=name[:-4], label=given[n], number=n, quoted=f'"{name}"')
        for n, name in enumerate(FILES)
    ]
    return head + "".join(lines)


def labelled(pictures: Path, tmp_path: Path, name: str, content: str | bytes) -> Source:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return open_source(str(pictures), labels=path)


def ids(source: Source) -> dict[str, int]:
    return {item.name: item.label for item in source.items}


NUMBERED = {name: number for number, name in enumerate(FILES)}
SPEAKS_OF_NUMBERS = {
    "comma.csv": table("{file},{label}\n"),
    "fractions of nothing.csv": table("{file},{label}.0\n", "file,label\n"),
    "semicolon.csv": table("{file};{label}\n", "file;label\n"),
    "decimal comma.csv": table("{file};{label},0\n", "file;label\n"),
    "tab and CRLF.tsv": table("{file}\t{label}\r\n", "file\tlabel\r\n"),
    "blank.txt": table("{file} {label}\n"),
    "bar.txt": table("{file} | {label}\n"),
    "UTF-16.csv": table("{file},{label}\n", "file,label\n").encode("utf-16"),
    "mark.csv": table("{file},{label}\n", "\ufefffile,label\n"),
    "quotes.csv": table('{quoted}, "{label}"\n', '"file", "label"\n'),
    "Windows.csv": table("C:\\data\\imgs\\{file},{label}\n", "file,label\n"),
    "dot.csv": table("./{file},{label}\n"),
    "absolute.csv": table("/home/anybody/imgs/{file},{label}\n"),
    "image_id.csv": table("{file},{label}\n", "image_id,label\n"),
    "file_name.csv": table("{file},{label}\n", "file_name,label\n"),
    "filename.csv": table("{number},{file},{label}\n", "width,filename,class\n"),
    "capitals.csv": table("{file},{label}\n", "Image ID,Class-ID\n"),
    "unknown names.csv": table("{file},{label}\n", "Photo,Species\n"),
    "index of pandas.csv": table("{number},{file},{label}\n", ",file,label\n"),
    "without endings.csv": table("{stem},{label}\n", "id,label\n"),
    "label first.csv": table("{label},{file}\n"),
    "label first, with names.csv": table("{label},{file}\n", "label,file\n"),
    "zeros.csv": table("{file},{number:03d}\n"),
    "capital names.csv": table("{file},{label}\n", "FILE,LABEL\n").upper(),
    "blank lines.csv": table("{file},{label}\n\n , \n", "\n\n"),
    "floats.json": json.dumps({name: float(number) for name, number in NUMBERED.items()}),
    "texts.json": json.dumps([[name, f"{number}.0"] for name, number in NUMBERED.items()]),
    "lines.jsonl": table('{{"file_name": {quoted}, "label": {label}}}\n'),
    "lines.json": table('{{"image": {quoted}, "label": "{label}"}}\n\n'),
    "pairs.ndjson": table("[{quoted}, {label}]\n"),
    "unknown keys.json": json.dumps([{"photo": name, "species": number} for name, number in NUMBERED.items()]),
    "json.txt": json.dumps({"labels": NUMBERED}),
}


@pytest.mark.parametrize("name", SPEAKS_OF_NUMBERS)
def test_whole_numbers_are_class_ids(pictures: Path, tmp_path: Path, name: str):
    source = labelled(pictures, tmp_path, name, SPEAKS_OF_NUMBERS[name])
    assert ids(source) == NUMBERED
    assert source.class_names is None
    assert class_line(source) == "labels: 12 classes, 0 to 11"


REFUSED = {
    "empty cell": (table("{file},{label}\n", labels=[*range(11), ""]), "im11.png has an empty label; write -1"),
    "empty cell among names": (table("{file},{label}\n", labels=[*"abcdefghijk", ""]), "im11.png has an empty label"),
    "nan": (table("{file},{label}\n", labels=["nan", *range(11)]), 'im0.png has the label "nan"; write -1'),
    "NaN among names": (table("{file},{label}\n", labels=["NaN", *"abcdefghijk"]), 'has the label "NaN"; write -1'),
    "None": (table("{file},{label}\n", labels=[*range(11), "None"]), 'im11.png has the label "None"; write -1'),
    "null.json": (json.dumps(NUMBERED | {"im3.png": None}), "im3.png has an empty label; write -1"),
    "nan.json": (json.dumps(NUMBERED | {"im3.png": float("nan")}), "im3.png has an empty label; write -1"),
    "true.json": (json.dumps(NUMBERED | {"im3.png": True}), "the label true is no class id or class name"),
    "fractions": (table("{file},{label}.5\n"), "the label 0.5 is no class id or class name, of im0.png"),
    "below": (table("{file},{label}\n", labels=[*range(11), -2]), "the class id -2 is below -1"),
    "beyond": (table("{file},{label}\n", labels=[*range(11), 7 * 10**8]), "the class id 700000000 of im11.png is"),
    "not there": (
        table("{file},{label}\n") + "im12.png,0\nim13.png,0\n",
        "names 2 files that are not in the source, such as im12.png, im13.png; remove these lines",
    ),
    "header unlike": (table("{file},{label}\n", "im99.png,3\n"), "names 1 files that are not in the source"),
    "two labels": (table("{file},{label}\n") + "./im1.png,2\n", "lists ./im1.png twice, with different labels"),
    "two labels.json": ('{"im1.png": 3, ' + json.dumps(NUMBERED)[1:], "lists im1.png twice, with different labels"),
    "three columns": (table("{file},{label},x\n"), "has 3 columns, and the first line, im0.png, 0, x, does"),
    "no column": (table("{file},{label},x\n", "file,a,b\n"), "has the columns file, a, b; call the one"),
    "no label": (table("{file},{label}\n").replace("im7.png,7\n", ""), "gives no label to 1 of 12 files, the first"),
    "a byte": (table("{file},\x05\n"), 'the label of im0.png has characters that cannot be printed, "\\u0005"'),
    "Latin-1": (table("{file},B\u00e4r\n").encode("latin-1"), "is not UTF-8 text"),
    "cut line.jsonl": (table('{{"file_name": {quoted}, "label": 1}}\n')[:-9], "line 12 is not valid JSON"),
    "number as name.json": (json.dumps([{"file": 3, "label": 1}] * 2), "3 is no name of a file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_clear_is_refused(pictures: Path, tmp_path: Path, name: str):
    content, message = REFUSED[name]
    with pytest.raises(PreparationError, match=re.escape(message)) as error:
        labelled(pictures, tmp_path, name if "." in name else f"{name}.csv", content)
    assert "\n" not in str(error.value)


def test_names_get_ids_in_order_with_numbers_as_numbers_and_minus_1_as_none(pictures: Path, tmp_path: Path):
    given = ["10", "9", "cat", "-1", "Bär", unicodedata.normalize("NFD", "Bär"), "9.0", "100", " cat", "1", "2", "-1.0"]
    source = labelled(pictures, tmp_path, "names.csv", table('{file},"{label}"\n', labels=given))
    assert source.class_names == ["1", "2", "9", "10", "100", "Bär", "cat"]
    assert [ids(source)[name] for name in FILES] == [3, 2, 6, -1, 5, 5, 2, 4, 6, 0, 1, -1]
    assert 'some labels are numbers, others such as "B' in source.remarks[0]
    assert class_line(source).endswith("; 2 of 12 images have no label")


def test_a_class_may_be_called_as_its_column(pictures: Path, tmp_path: Path):
    content = table("{file},{label}\n", "image_id,label\n", ["label", "cat"] * 6)
    assert labelled(pictures, tmp_path, "a.csv", content).class_names == ["cat", "label"]


def test_file_names_are_compared_by_their_letters(tmp_path: Path):
    data = write_folder(tmp_path / "data", {unicodedata.normalize("NFD", f"Bär{n}.png"): PICTURE for n in range(3)})
    source = labelled(data, tmp_path, "a.csv", unicodedata.normalize("NFC", "Bär0.png,2\nBär1.png,0\nBär2.png,1\n"))
    assert [item.label for item in source.items] == [2, 0, 1]


def test_paths_tell_files_of_one_name_apart(tmp_path: Path):
    data = write_folder(tmp_path / "data", {f"{name}/1.png": PICTURE for name in "ab"})
    source = labelled(data, tmp_path, "a.csv", "image,label\ndata/a/1.png,1\ndata/b/1.png,0\n")
    assert ids(source) == {"a/1.png": 1, "b/1.png": 0}


def test_a_name_without_its_ending_is_that_of_one_file_or_of_none(tmp_path: Path):
    data = write_folder(tmp_path / "data", {f"{name}": PICTURE for name in ("a/1.png", "b/1.png", "c/1.jpg")})
    with pytest.raises(PreparationError, match=r"1 may be a/1\.png or b/1\.png or c/1\.jpg; write the path"):
        labelled(data, tmp_path, "a.csv", "file,label\na/1.png,0\nb/1.png,0\n1,0\n")


UNUSUAL = {
    "from 1": (table("{file},{label}\n", labels=list(range(1, 13))), "13 classes, 0 to 12; no image has class 0"),
    "gaps": (table("{file},{label}\n", labels=[0, 5] * 6), "6 classes, 0 to 5; 4 of these classes have no"),
    "same again": (table("{file},{label}\n") + "im3.png,3\n", "lists 1 files more than once, with the same label"),
    "capitals": (table("{file},{label}\n", labels=["cat", "Cat"] * 6), 'the classes "Cat" and "cat" differ'),
    "two columns": (table("{file},{label},x\n", "file,label,class_name\n"), "the column label is used, not class_name"),
    "taken for a header": (table("{file},x\n", "photo,species\n"), "photo, species in the first line are taken"),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_unusual_is_told(pictures: Path, tmp_path: Path, name: str):
    content, message = UNUSUAL[name]
    source = labelled(pictures, tmp_path, f"{name}.csv", content)
    assert message in "\n".join([*source.remarks, class_line(source)])


def test_the_line_about_classes(tmp_path: Path):
    data = write_folder(tmp_path / "data", {f"{number}/{number}.png": b"" for number in range(30)})
    line = 'labels: 30 classes, 0 "0" to 29 "29" (then 1 "1", 2 "2", 3 "3", ...); each image has a class of its own'
    assert class_line(open_source(str(data))).startswith(line)
    write_folder(tmp_path / "one", {"a/0.png": b"", "1.png": b""})
    assert class_line(open_source(str(tmp_path / "one"))) == 'labels: 1 class, 0 "a"; 1 of 2 images have no label'
    assert class_line(open_source(str(data / "7"))) == "labels: none; all images are of one kind"


def test_labels_of_nothing():
    assert class_ids([], "x").ids == []
