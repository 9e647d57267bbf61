"""Every kind of source gives the same pictures and labels as plain Pillow, zipfile and json give."""

import bz2
import gzip
import io
import json
import lzma
import multiprocessing
import os
import pickle
import sys
import tarfile
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.picture_sets import (
    TREE_LABELS,
    noise,
    official_zip,
    pixels,
    png,
    tree,
    write_folder,
    write_tar,
    write_zip,
)
from recipe.command_line import UserError
from recipe.data.facts import DataError
from recipe.preparation.pictures import PictureFormat
from recipe.preparation.pipeline import prepare
from recipe.preparation.sources.archives import TarSource, ZipSource
from recipe.preparation.sources.folder import FolderSource
from recipe.preparation.sources.items import ItemError, PreparationError, Source, items_hash, shown
from recipe.preparation.sources.opening import described, open_source

SIZE = 8


def opened(path: object, **settings) -> Source:
    return open_source(str(path), **settings)


def read_all(source: Source, size: int = SIZE) -> list[np.ndarray]:
    picture_format = PictureFormat(size)
    return [picture_format(source.read(index)) for index in range(len(source.items))]


def assert_is_tree(source: Source, labels: dict[str, int] = TREE_LABELS) -> None:
    files = tree(SIZE)
    assert {item.name: item.label for item in source.items} == labels
    for item, image in zip(source.items, read_all(source), strict=True):
        assert np.array_equal(image, pixels(files[item.name])), item.name
        assert item.size == len(files[item.name])


MAKERS = {
    "folder": lambda path: write_folder(path, tree(SIZE)),
    "zip": lambda path: write_zip(path, tree(SIZE)),
    "deflated zip": lambda path: write_zip(path, tree(SIZE), zipfile.ZIP_DEFLATED),
    "tar": lambda path: write_tar(path, tree(SIZE)),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_trees_are_read_in_sorted_order_with_class_folders_as_labels(tmp_path: Path, kind: str):
    source = opened(MAKERS[kind](tmp_path / "data"))
    assert_is_tree(source)
    assert [item.name for item in source.items] == list(TREE_LABELS)
    assert source.class_names == ["ape", "cat", "dog"]
    assert source.label_dim() == 3


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_tars_keep_their_order(tmp_path: Path, mode: str):
    source = opened(write_tar(tmp_path / "data.tar.x", tree(SIZE), mode))
    assert_is_tree(source)
    assert [item.name for item in source.items] == list(tree(SIZE))


def test_files_beside_class_folders_and_a_folder_that_holds_everything(tmp_path: Path):
    files = {f"./top/{name}": data for name, data in tree(SIZE).items()} | {"./top/root.png": png(noise(8, 8, 9))}
    source = opened(write_tar(tmp_path / "data.tar", files))
    labels = {item.name.removeprefix("top/"): item.label for item in source.items}
    assert labels == TREE_LABELS | {"root.png": -1}
    flat = opened(write_folder(tmp_path / "flat", {"b.png": b"", "a.png": b""}))
    assert [(item.name, item.label) for item in flat.items] == [("a.png", -1), ("b.png", -1)]
    assert (flat.class_names, flat.label_dim()) == (None, 0)


def test_hidden_files_are_not_looked_at(tmp_path: Path):
    extra = {"cat/.DS_Store": b"x", ".git/config": b"x", "__MACOSX/cat/._a.png": b"x"}
    assert_is_tree(opened(write_folder(tmp_path / "data", tree(SIZE) | extra)))


def test_links_are_followed_but_not_in_circles(tmp_path: Path):
    write_folder(tmp_path / "elsewhere", tree(SIZE))
    (tmp_path / "data").mkdir()
    for name in ("ape", "cat", "dog"):
        os.symlink(tmp_path / "elsewhere" / name, tmp_path / "data" / name)
    assert_is_tree(opened(tmp_path / "data"))
    os.symlink(tmp_path / "elsewhere", tmp_path / "elsewhere" / "cat" / "round")
    with pytest.raises(PreparationError, match="is a link to a folder that holds it"):
        opened(tmp_path / "elsewhere")


@pytest.mark.parametrize("labelled", [True, False])
def test_the_official_zip_is_read_as_its_own_reader_would(tmp_path: Path, labelled: bool):
    path = official_zip(tmp_path / "data.zip", 16, labelled)
    with zipfile.ZipFile(path) as archive:  # what the official loader does
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        content = json.loads(archive.read("dataset.json"))["labels"]
        expected = [np.array(Image.open(io.BytesIO(archive.read(name)))).transpose(2, 0, 1) for name in names]
    labels = [dict(content)[name] for name in names] if labelled else [-1] * len(names)
    source = opened(path)
    assert [(item.name, item.label) for item in source.items] == list(zip(names, labels, strict=True))
    assert np.array_equal(np.stack(read_all(source, 16)), np.stack(expected))
    assert source.label_dim() == (5 if labelled else 0)


def test_imagenet(tmp_path: Path):
    synsets = ["n01440764", "n02119789", "n13054560"]
    training = {f"train/{s}/{s}_{i}.JPEG": png(noise(8, 8, i)) for s in reversed(synsets) for i in range(2)}
    other = {"val/ILSVRC2012_val_00000001.JPEG": b"", "test/x.JPEG": b""}
    source = opened(write_folder(tmp_path / "imagenet", training | other))
    assert [item.label for item in source.items] == [0, 0, 1, 1, 2, 2]
    assert source.class_names == synsets
    assert "only train/ is used" in source.remarks[0]
    alone = opened(write_folder(tmp_path / "alone", training))
    assert [item.label for item in alone.items] == [0, 0, 1, 1, 2, 2]


NAMED = {"only.png": 4, "a.png": 0, "b.png": -1, "0.png": 1, "1.png": 1}
LABEL_FILES = {
    "ids.csv": "ape/only.png,4\ncat/a.png,0\ncat/b.png,-1\ndog/0.png,1\ndog/sub/1.png,1\n",
    "header.csv": "size,label,file\n1,4,ape/only.png\n2,0,cat/a.png\n3,-1,cat/b.png\n4,1,0.png\n5,1,dog/sub/1.png\n",
    "basenames.csv": "\ufeffonly.png, 4\na.png, 0\nb.png, -1\n0.png, 1\n1.png, 1\n",
    "ids.json": json.dumps(NAMED | {"1.png": "1"}),
    "pairs.json": json.dumps({"labels": list(NAMED.items())}),
    "records.json": json.dumps([{"class": c, "file_name": n} for n, c in NAMED.items()]),
}


@pytest.mark.parametrize("name", LABEL_FILES)
def test_label_files(tmp_path: Path, name: str):
    data = write_folder(tmp_path / "data", tree(SIZE))
    labels = data / name  # inside of the folder: it is no picture
    labels.write_text(LABEL_FILES[name], encoding="utf-8")
    source = opened(data, labels=labels)
    assert_is_tree(source, {"ape/only.png": 4, "cat/a.png": 0, "cat/b.png": -1, "dog/0.png": 1, "dog/sub/1.png": 1})
    assert (source.class_names, source.label_dim()) == (None, 5)


def test_class_names_in_a_label_file(tmp_path: Path):
    labels = tmp_path / "labels.csv"
    text = "file,class\nonly.png,zebra\na.png,Bär\nb.png,zebra\n0.png,3\n1.png,Bär\n"
    labels.write_text(text, encoding="utf-8")
    source = opened(write_zip(tmp_path / "data.zip", tree(SIZE)), labels=labels)
    assert source.class_names == ["3", "Bär", "zebra"]
    assert [item.label for item in source.items] == [2, 1, 2, 0, 1]


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("encoding", ["png", "webp", "raw"])
def test_mds_shards(tmp_path: Path, encoding: str, compression: str | None):
    data = write_folder(tmp_path / "data", tree(SIZE))
    facts = prepare(str(data), tmp_path / "shards", encoding=encoding, compression=compression, shard_size="3kb")
    source = opened(tmp_path / "shards")
    assert [item.label for item in source.items] == list(TREE_LABELS.values())
    assert source.class_names == facts.class_names == ["ape", "cat", "dog"]
    for image, name in zip(read_all(source), TREE_LABELS, strict=True):
        assert np.array_equal(image, pixels(tree(SIZE)[name]))


def test_mds_shards_of_others_and_pickles_in_them(tmp_path: Path):
    from streaming import MDSWriter

    with MDSWriter(out=str(tmp_path / "own"), columns={"picture": "jpeg", "y": "uint16", "caption": "str"}) as writer:
        for seed in range(3):
            picture = Image.fromarray(noise(8, 8, seed))
            writer.write({"picture": picture, "y": np.uint16(2 - seed), "caption": "x"})
    source = opened(tmp_path / "own")
    assert [item.label for item in source.items] == [2, 1, 0]
    assert read_all(source)[0].shape == (3, 8, 8)

    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    with MDSWriter(out=str(tmp_path / "trap"), columns={"image": "png", "label": "pkl"}) as writer:
        writer.write({"image": Image.fromarray(noise(8, 8, 0)), "label": Trap()})
    with pytest.raises(DataError, match="has a column of pickles, which can run any code"):
        opened(tmp_path / "trap")
    pickle.loads(pickle.dumps(Trap()))
    assert (tmp_path / "sprung").exists(), "the trap works"


def test_hugging_face_on_disk(tmp_path: Path):
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["b", "a"])})
    images = [{"bytes": png(noise(8, 8, seed)), "path": None} for seed in range(4)]
    data = datasets.Dataset.from_dict({"img": images, "label": [1, 0, 1, 1]}, features=features)
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(tmp_path / "hf")
    source = opened(tmp_path / "hf", split="train")
    assert [item.label for item in source.items] == [1, 0, 1, 1]
    assert source.class_names == ["b", "a"]
    for seed, image in enumerate(read_all(source)):
        assert np.array_equal(image, noise(8, 8, seed).transpose(2, 0, 1))
    with pytest.raises(PreparationError, match=r"--split None: .* has the splits train, test; name one"):
        opened(tmp_path / "hf")


def test_hugging_face_without_its_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(PreparationError, match=r"need the package datasets; pip install 'edm2-recipe\[hf\]'"):
        opened("hf:cifar10")


def test_names_in_archives_lead_nowhere(tmp_path: Path):
    files = {"../outside.png": png(noise(8, 8, 0)), "/etc/absolute.png": png(noise(8, 8, 1)), "in/side.png": b""}
    for path in (write_zip(tmp_path / "a.zip", files), write_tar(tmp_path / "a.tar", files)):
        before = set(tmp_path.parent.rglob("*"))
        source = opened(path)
        names = [item.name for item in source.items]
        assert source.read(names.index("../outside.png")) == files["../outside.png"]
        assert set(tmp_path.parent.rglob("*")) == before


def test_what_is_damaged_in_an_archive_is_told(tmp_path: Path):
    files = tree(SIZE)
    path = write_zip(tmp_path / "data.zip", files, zipfile.ZIP_DEFLATED)
    source = ZipSource(path, None)
    names = [item.name for item in source.items]
    with zipfile.ZipFile(path) as archive:
        middle = archive.getinfo("cat/a.png").header_offset + 60
    data = bytearray(path.read_bytes())
    data[middle] ^= 255
    path.write_bytes(data)
    with pytest.raises(ItemError, match="is damaged in the ZIP"):
        ZipSource(path, None).read(names.index("cat/a.png"))
    path = tmp_path / "locked.zip"
    write_zip(path, {"a.png": b"1"}, zipfile.ZIP_BZIP2)
    with pytest.raises(ItemError, match="is compressed by method 12"):
        ZipSource(path, None).read(0)
    path.write_bytes(
        path.read_bytes().replace(b"PK\x01\x02\x2e\x03\x2e\x00\x00\x00", b"PK\x01\x02\x2e\x03\x2e\x00\x01\x00")
    )
    with pytest.raises(ItemError, match="is encrypted"):
        ZipSource(path, None).read(0)
    tar = write_tar(tmp_path / "data.tar", files)
    with tarfile.open(tar, "a") as archive:
        link = tarfile.TarInfo("ape/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    source = TarSource(tar, None)
    with pytest.raises(ItemError, match="is not a regular file of the tar"):
        source.read([item.name for item in source.items].index("ape/link.png"))


def test_a_file_of_a_zip_that_says_it_is_small_is_not_unpacked_whole(tmp_path: Path):
    path = write_zip(tmp_path / "bomb.zip", {"zeros.png": bytes(100 << 20)}, zipfile.ZIP_DEFLATED)
    path.write_bytes(path.read_bytes().replace((100 << 20).to_bytes(4, "little"), (1000).to_bytes(4, "little")))
    tracemalloc.start()
    with pytest.raises(ItemError, match="is damaged in the ZIP"):
        opened(path).read(0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_forked_processes_do_not_move_each_others_position(tmp_path: Path, kind: str):
    files = {f"{index}.png": bytes([index]) * 100_000 for index in range(50)}
    source = opened({"zip": write_zip, "tar": write_tar}[kind](tmp_path / "data", files))
    contents = [files[item.name] for item in source.items] * 4
    assert source.read(0) == contents[0]  # the file is open when the processes are forked

    def read_all_of_it() -> bool:
        return [source.read(index % 50) for index in range(200)] == contents

    context = multiprocessing.get_context("fork")
    said = context.SimpleQueue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from Python 3.12 on: that threads are running
        processes = [context.Process(target=lambda: said.put(read_all_of_it())) for _ in range(3)]
        for process in processes:
            process.start()
    assert read_all_of_it()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [said.get() for _ in processes] == [True, True, True]


def test_a_file_that_says_it_is_huge_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("recipe.preparation.sources.folder.LARGEST_FILE", 1000)
    path = write_zip(tmp_path / "bomb.zip", {"zeros.png": bytes(1 << 20)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ItemError, match="has 1048576 bytes, more than the 1000"):
        opened(path).read(0)


@pytest.mark.parametrize("opener", [gzip, bz2, lzma])
def test_damaged_archives_are_refused(tmp_path: Path, opener):
    tar = write_tar(tmp_path / "whole.tar", tree(SIZE)).read_bytes()
    path = tmp_path / "cut.tar.x"
    path.write_bytes(opener.compress(np.random.default_rng(0).bytes(5000) + tar)[:3000])
    with pytest.raises(PreparationError, match=r"cut\.tar\.x: is (not a whole tar|neither a folder)"):
        opened(path)


@pytest.mark.parametrize("opener", [gzip, bz2, lzma])
def test_tars_that_are_cut_are_refused(tmp_path: Path, opener):
    whole = opener.compress(write_tar(tmp_path / "whole.tar", {"a.png": png(noise(SIZE, SIZE, 0))}).read_bytes())
    path = tmp_path / "cut.tar.x"
    for length in range(0, len(whole) // 2, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(PreparationError, match=r"cut\.tar\.x: (is not a whole tar|is neither a folder|holds no)"):
            opened(path)


def test_a_tar_that_was_cut_between_its_files_is_told(tmp_path: Path):
    whole = write_tar(tmp_path / "whole.tar", tree(SIZE))
    assert opened(whole).remarks == []
    last = max(entry.offset for entry in TarSource(whole, None).entries.values())
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[: last - 512])
    source = opened(tmp_path / "cut.tar")
    assert len(source.items) == len(tree(SIZE)) - 1
    assert source.remarks == [
        f"{tmp_path}/cut.tar: has no mark at its end, as if it were cut short; files may be missing"
    ]


def bad_label_file(text: str, suffix: str = ".csv"):
    def make(tmp_path: Path) -> tuple[object, dict]:
        path = tmp_path / f"labels{suffix}"
        path.write_text(text)
        return write_folder(tmp_path / "data", tree(SIZE)), {"labels": path}

    return make


def bad_dataset_json(text: str):
    return lambda tmp_path: (write_zip(tmp_path / "data.zip", tree(SIZE) | {"dataset.json": text.encode()}), {})


REFUSED = {
    "missing": (lambda tmp_path: (tmp_path / "none", {}), "there is no such folder or archive"),
    "a file of another kind": (lambda tmp_path: (__file__, {}), "is neither a folder, nor a ZIP, nor a tar"),
    "empty folder": (lambda tmp_path: (tmp_path, {}), "holds no files"),
    "broken index": (lambda tmp_path: (write_folder(tmp_path, {"index.json": b"{"}), {}), "is not an MDS index"),
    "no shards": (lambda tmp_path: (write_folder(tmp_path, {"index.json": b'{"shards": []}'}), {}), "lists no samples"),
    "split": (lambda tmp_path: (write_folder(tmp_path, tree()), {"split": "train"}), "only Hugging Face data sets"),
    "labels of digits": (lambda tmp_path: ("digits", {"labels": tmp_path / "x"}), "has labels of its own"),
    "no label file": (
        lambda tmp_path: (write_folder(tmp_path, tree()), {"labels": tmp_path / "x"}),
        "cannot be read .No such file",
    ),
    "files without label": (bad_label_file("a.png,1\n"), "gives no label to 4 of 5 files, the first ape/only.png"),
    "a row too short": (bad_label_file("a.png\n"), "the line 'a.png' has too few columns"),
    "twice": (bad_label_file("a.png,1\na.png,2\n"), "lists a.png twice"),
    "below -1": (bad_label_file("a.png,-2\n"), "the class id -2 is below -1"),
    "JSON": (bad_label_file("{", ".json"), "is not valid JSON"),
    "JSON of another form": (bad_label_file("[3]", ".json"), r"3 is not \[file name, label\]"),
    "label of another kind": (bad_label_file('{"a.png": 1.5}', ".json"), "the label 1.5 is no class id"),
    "dataset.json": (bad_dataset_json("[]"), 'must be JSON with the key "labels"'),
    "vectors as labels": (
        bad_dataset_json('{"labels": [["cat/a.png", [0, 1]]]}'),
        r"the label \[0, 1\] is no class id",
    ),
    "dataset.json with gaps": (bad_dataset_json('{"labels": []}'), "gives no label to 5 of 5 files"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_sources_are_refused(tmp_path: Path, case: str):
    make, message = REFUSED[case]
    path, settings = make(tmp_path)
    with pytest.raises(UserError, match=message):
        opened(path, **settings)


def test_a_basename_that_several_files_have_is_no_name(tmp_path: Path):
    labels = tmp_path / "labels.csv"
    labels.write_text("same.png,1\n")
    data = write_folder(tmp_path / "data", {"a/same.png": b"", "b/same.png": b""})
    with pytest.raises(
        PreparationError, match=r"same\.png may be a/same\.png or b/same\.png; write the path in the source"
    ):
        opened(data, labels=labels)


def test_the_hash_of_items_tells_names_sizes_and_labels_apart(tmp_path: Path):
    def hashed(files: dict[str, bytes]) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return items_hash(FolderSource(write_folder(folder, files), None).items)

    first = hashed(tree(SIZE))
    assert hashed(tree(SIZE)) == first
    assert hashed(tree(SIZE) | {"cat/a.png": b"shorter"}) != first
    assert hashed(tree(SIZE) | {"cat/c.png": b""}) != first
    assert hashed(tree(SIZE) | {"bee/c.png": b""}) != first


def test_names_for_people():
    assert shown("cat/\udcff\x1b[31m é.png") == "cat/\\udcff\\x1b[31m é.png"
    assert described("/home/somebody/photos/") == "photos"
    assert [described(name) for name in ("digits", "hf:x", "s3://a/b")] == ["digits", "hf:x", "s3://a/b"]
