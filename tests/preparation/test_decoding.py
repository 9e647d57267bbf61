"""One picture is one line, whatever Pillow does over it, and is turned where its orientation can be read."""

import io
import json
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.ImageFile import ImageFile

from helpers.damaged_pictures import Tag, every_format, exif_of, mutated
from helpers.picture_sets import noise, png, smooth, write_folder
from recipe.preparation.decoding import one_reason, upright
from recipe.preparation.first_look import first_look
from recipe.preparation.pictures import PictureFormat
from recipe.preparation.pipeline import prepare
from recipe.preparation.sources.items import Item, ItemError, PreparationError, Source
from recipe.storage.places import StorageError

SIZE = 16
PICTURE = smooth(SIZE, SIZE, 0)
RESOLUTION, UNIT, LENGTH, ORIENTATION, SOFTWARE = 282, 296, 257, 274, 305
BYTE, TEXT, SHORT, LONG, FRACTION, ANYTHING, SIGNED = 1, 2, 3, 4, 5, 7, 10
TURNED: Tag = (ORIENTATION, SHORT, 1, struct.pack("<H", 6))
ODD: dict[str, tuple[list[Tag], bool]] = {  # entries, and whether they say that the picture has to be turned
    "a fraction of -1 and 0": ([TURNED, (RESOLUTION, FRACTION, 1, struct.pack("<ll", -1, 0))], True),
    "a signed fraction": ([TURNED, (RESOLUTION, SIGNED, 1, struct.pack("<ll", -1, 0))], True),
    "a resolution as a byte": ([TURNED, (RESOLUTION, BYTE, 1, b"H"), (UNIT, SHORT, 1, b"\2\0")], True),
    "a length as text": ([(LENGTH, TEXT, 2, b"x\0"), TURNED], True),
    "a unit as text": ([TURNED, (RESOLUTION, FRACTION, 1, struct.pack("<LL", 72, 1)), (UNIT, TEXT, 2, b"x\0")], True),
    "beyond the end": ([TURNED, (34665, LONG, 1, struct.pack("<L", 99999999))], True),
    "a huge count": ([TURNED, (SOFTWARE, TEXT, 0x7FFFFFFF, b"xxxx")], True),
    "an unknown type": ([TURNED, (SOFTWARE, 99, 1, b"xxxx")], True),
    "orientation as text": ([(ORIENTATION, TEXT, 2, b"6\0")], True),
    "orientation as a byte": ([(ORIENTATION, BYTE, 1, b"\6")], True),
    "orientation as anything": ([(ORIENTATION, ANYTHING, 1, b"\6")], True),
    "orientation as a long": ([(ORIENTATION, LONG, 1, struct.pack("<L", 6))], True),
    "orientation as a fraction": ([(ORIENTATION, FRACTION, 1, struct.pack("<LL", 6, 1))], True),
    "a fraction of 0": ([(ORIENTATION, FRACTION, 1, struct.pack("<LL", 6, 0))], False),
    "orientation 9": ([(ORIENTATION, SHORT, 1, struct.pack("<H", 9))], False),
    "orientation 0": ([(ORIENTATION, SHORT, 1, struct.pack("<H", 0))], False),
    "a word": ([(ORIENTATION, TEXT, 4, b"top\0")], False),
}


def saved(kind: str, exif: bytes) -> bytes:
    file = io.BytesIO()
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}, "PNG": {}}[kind]
    PICTURE.save(file, kind, exif=exif, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("case", ODD)
def test_orientation_is_followed_wherever_it_can_be_read(case: str, kind: str):
    tags, turned = ODD[case]
    pixels = np.asarray(PICTURE)
    expected = np.rot90(pixels, -1) if turned else pixels
    made = PictureFormat(SIZE)(saved(kind, exif_of(tags))).transpose(1, 2, 0)
    assert np.abs(made.astype(int) - expected).max() <= (8 if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0garbage", exif_of([TURNED])[:-10]])
def test_no_metadata_spoil_a_picture(exif: bytes, kind: str):
    made = PictureFormat(SIZE)(saved(kind, exif)).transpose(1, 2, 0)
    assert np.abs(made.astype(int) - np.asarray(PICTURE)).max() <= (8 if kind == "JPEG" else 0)


def test_an_orientation_is_found_where_pillow_gives_up():
    exif = exif_of([TURNED]).replace(b"II*\0", b"II\0\0")
    made = PictureFormat(SIZE)(saved("PNG", exif)).transpose(1, 2, 0)
    assert np.array_equal(made, np.rot90(np.asarray(PICTURE), -1))


def test_what_several_pictures_in_one_jpeg_say_wrongly_is_left_out():
    whole = saved("JPEG", b"")
    block = b"MPF\0II*\0\x08\0\0\0\x01\0\x00\xb0\x07\0\x04\0\0\00100\0\0\0\0"  # which says no number of pictures
    odd = whole[:2] + b"\xff\xe2" + struct.pack(">H", len(block) + 2) + block + whole[2:]
    assert np.array_equal(PictureFormat(SIZE)(odd), PictureFormat(SIZE)(whole))


def test_pictures_are_turned_once():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    pixels = noise(9, 8, 0)
    for options in ({}, {"compression": "tiff_lzw"}):  # of which Pillow turns pictures itself
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "TIFF", exif=exif, **options)
        assert np.array_equal(np.asarray(upright(file.getvalue())), np.rot90(pixels, -1))


class Failing(Source):
    """Pictures whose decoding or reading fails by an error of any kind."""

    def __init__(self, error: Exception):
        self.error = error
        self.items = [Item("a/b.png", 1), Item("a/c.png", 1)]

    def read(self, index: int) -> bytes:
        if index == 0:
            raise self.error
        return png(noise(8, 8, 0))


class StrangeError(Exception):
    pass


ERRORS = [
    NotImplementedError("Unknown pixel format"), StrangeError("odd\nvery odd"), MemoryError(), RecursionError("deep"),
    struct.error("unpack requires"), AssertionError(), UserWarning("hm"), StopIteration(), ZeroDivisionError("0"),
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["reading", "decoding"])
def test_any_error_is_one_line_in_the_first_look_and_in_workers(
    error: Exception, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = write_folder(tmp_path / "data", {f"a/{name}.png": png(noise(8, 8, 0)) for name in "bc"})
    with monkeypatch.context() as patch:
        if where == "reading":
            from recipe.preparation.sources.folder import FolderSource

            read = FolderSource.read_file
            patch.setattr(
                FolderSource,
                "read_file",
                lambda self, name: Failing(error).read(0) if name == "a/b.png" else read(self, name),
            )
        else:
            (folder / "a/b.png").write_bytes(png(noise(9, 9, 0)))
            load = ImageFile.load

            def fail(picture: ImageFile):
                if picture.size == (9, 9):
                    raise error
                return load(picture)

            patch.setattr(ImageFile, "load", fail)
        with pytest.raises(PreparationError) as refused:
            prepare(str(folder), tmp_path / "out", workers=1)
        lines = str(refused.value).splitlines()
        assert len(lines) == 3 and lines[1].startswith("  a/b.png: ") and "(" in lines[1]
        facts = prepare(str(folder), tmp_path / "out", workers=1, skip_errors=True)
    assert (facts.num_images, facts.num_skipped) == (1, 1)
    assert list(json.loads((tmp_path / "out" / "skipped.json").read_text())) == ["a/b.png"]


def test_a_place_that_does_not_answer_is_no_broken_picture():
    with pytest.raises(StorageError):
        first_look(Failing(StorageError("s3://x: no answer")))
    with pytest.raises(ItemError, match=r"cannot be read \(odd very odd\)"), one_reason("cannot be read"):
        raise StrangeError("odd\nvery odd")


def test_a_damaged_file_does_not_decide_the_size(tmp_path: Path):
    whole = png(noise(32, 32, 1))
    files = {"0.png": whole[: len(whole) // 2]} | {f"{n}.png": png(noise(8, 8, n)) for n in range(1, 4)}
    facts = prepare(str(write_folder(tmp_path / "data", files)), tmp_path / "out", skip_errors=True, workers=1)
    assert (facts.img_resolution, facts.num_images, facts.num_skipped) == (8, 3, 1)


def test_bombs_do_not_decide_anything(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    source = Failing(ItemError("x"))
    source.read = lambda index: png(noise(12, 12, 0) if index == 0 else noise(8, 8, 0))
    assert first_look(source)[0] == (8, 8)


@pytest.fixture(scope="module")
def formats() -> list[tuple[str, bytes]]:
    return every_format()


def test_every_format_is_there(formats: list[tuple[str, bytes]]):
    kinds = {kind for kind, _ in formats}
    assert len(kinds) >= 20 and {"AVIF", "DDS", "GIF", "ICNS", "JPEG", "JPEG2000", "TIFF", "WEBP"} <= kinds


@pytest.mark.parametrize("count", [100, pytest.param(5000, marks=[pytest.mark.slow, pytest.mark.soak])])
def test_damaged_files_of_every_format_are_pictures_or_one_line(count: int, formats: list[tuple[str, bytes]], capfd):
    chance = random.Random(count)
    form = PictureFormat(SIZE)
    usable, reasons = 0, []
    for _ in range(count):
        data = mutated(chance.choice(formats)[1], chance)
        for decode in (upright, form):
            try:
                decode(data)
                usable += 1
            except ItemError as error:
                reasons.append(str(error))
    assert all(reason.isprintable() for reason in reasons)
    assert min(usable, len(reasons)) > count / 5
