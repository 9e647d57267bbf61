"""Amounts of training: what is accepted, how many images it is, and what is said of the rest."""

import pytest

from recipe.configuration.spans import Span

BATCH, EPOCH = 64, 5000

ACCEPTED = {
    "a number": (200000, 200000),
    "zero": (0, 0),
    "a whole float": (6400.0, 6400),
    "a float as large as YAML reads 1e9": (1e9, 10**9),
    "digits": ("200000", 200000),
    "spaces around": (" 64 ", 64),
    "grouped": ("51_200", 51200),
    "exponent": ("1e3", 1000),
    "k": ("200k", 200_000),
    "M": ("10M", 10_000_000),
    "G": ("2G", 2_000_000_000),
    "ki": ("200ki", 200 * 2**10),
    "Mi": ("8Mi", 8 * 2**20),
    "Gi": ("2Gi", 2**31),
    "a fraction of a suffix": ("1.5k", 1500),
    "a fraction that binary floats cannot hold": ("0.001M", 1000),
    "a fraction of a binary suffix": ("0.5Mi", 2**19),
    "samples": ("4096sp", 4096),
    "batches": ("100ba", 100 * BATCH),
    "epochs": ("3ep", 3 * EPOCH),
    "no batches": ("0ba", 0),
}


@pytest.mark.parametrize(("given", "images"), ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(given, images):
    assert Span.parse(given).images(BATCH, EPOCH) == images


REJECTED = {
    "unknown suffix": "8Q",
    "wrong case of k": "200K",
    "wrong case of Ki": "200Ki",
    "wrong case of sp": "64SP",
    "milli": "64m",
    "space before the suffix": "64 k",
    "negative number": -5,
    "negative text": "-5",
    "signed": "+5",
    "underscores": "1_0",
    "leading zero": "010k",
    "leading zero of batches": "010ba",
    "full-width digits": "\uff15\uff10k",
    "comma": "1,000",
    "fraction of a batch": "1.5ba",
    "Composer's seconds": "10sec",
    "Composer's share of the duration": "1dur",
    "unit alone": "ep",
    "suffix alone": "Mi",
    "two amounts": "1k 2k",
    "dot at the end": "5.k",
    "dot in front": ".5k",
    "word": "none",
    "blank": "",
    "true": True,
    "false": False,
    "nothing": None,
    "list": [64],
    "mapping": {"value": 64},
    "infinity": float("inf"),
    "not a number": float("nan"),
    "number that Python prints with an exponent": 1e-7,
}


@pytest.mark.parametrize("given", REJECTED.values(), ids=REJECTED)
def test_rejected(given):
    with pytest.raises(ValueError, match="must be a number of images such as 200000, 200k, 8Mi or 2Gi, or a Composer"):
        Span.parse(given)


@pytest.mark.parametrize(
    ("given", "images"), [(1.5, "1.5"), ("0.0001k", "0.1"), ("1.0005k", "1000.5"), ("0.3Mi", "314573")]
)
def test_part_of_an_image(given, images):
    with pytest.raises(
        ValueError, match=f"must be a number of images .*; {given} is {images}.* images, not a whole number"
    ):
        Span.parse(given)


def test_images_follow_the_batch_and_the_epoch():
    assert Span.parse("8Mi").images(2048) == Span.parse("8Mi").images(64) == 2**23
    assert Span.parse("10ba").images(2048) == 20480
    assert Span.parse("10ba").images(64) == 640
    assert Span.parse("2ep").images(64, images_per_epoch=5000) == 10000
    assert Span.parse("2ep").images(64, images_per_epoch=0) == 0


def test_epochs_of_an_unknown_data_set():
    with pytest.raises(ValueError, match="3ep is in epochs, but the size of the data set is not known here"):
        Span.parse("3ep").images(BATCH)


def test_the_text_stays_as_written():
    assert [str(Span.parse(given)) for given in ("8Mi", " 100ba ", 64, 1e9)] == ["8Mi", "100ba", "64", "1000000000"]
    span = Span.parse("1.5k")
    assert Span.parse(span) is span
    assert Span.parse(str(span)) == span
    assert (span.value, span.unit) == (1500, "sp")
