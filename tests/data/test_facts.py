"""The facts of a data set: read as they are written, and refused by the key that is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from recipe.data.facts import DataError, DataFacts, kind_of, mixture
from recipe.data.index import facts_at
from recipe.edm2.latents import STABLE_DIFFUSION, Whitening
from recipe.storage.addresses import open_place

PIXELS = DataFacts(kind="pixels", img_resolution=8, sigma_data=0.3, num_images=10)


def test_facts_of_prepared_data(digits: Path):
    facts = facts_at(open_place(str(digits)))
    assert facts is not None
    assert (facts.kind, facts.num_images, facts.img_resolution, facts.img_channels) == ("pixels", 5000, 8, 1)
    assert (facts.label_dim, facts.encoding, facts.vae, facts.whitening) == (10, "png", None, None)
    assert facts.class_names == [str(label) for label in range(10)]
    assert facts.images_per_class == {str(label): 500 for label in range(10)}
    assert facts.other == {}
    assert facts.text() == (digits / "stats.json").read_text()


def test_facts_of_latents(encoded: Path):
    facts = facts_at(open_place(str(encoded)))
    assert facts is not None
    assert (facts.kind, facts.vae, facts.pixel_resolution, facts.encoding) == ("latents", "small-vae", 64, None)
    assert facts.whitening == facts.latent_whitening == STABLE_DIFFUSION
    assert facts.other == {}
    assert facts.text() == (encoded / "stats.json").read_text()


def test_no_facts(tmp_path: Path):
    assert facts_at(open_place(str(tmp_path))) is None


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"made_by": "hand", "sigma_data": 1, "zoo": [1, {"a": None}], "class_names": None, "kind": "pixels"},
        {"std": [1, 0.5], "mean": [], "nothing": None, "streams": [{"proportion": 3.0, "what": {}}], "label_dim": None},
        {"whitening": {"mean": [1.0], "std": [2.0]}, "settings": {"a": [None]}, "images_per_class": {"-1": 3}},
    ],
)
def test_nothing_is_lost_and_the_order_stays(tree: dict[str, Any]):
    facts = DataFacts.parse(json.dumps(tree), "here")
    assert json.dumps(facts.to_json()) == json.dumps(tree)
    assert DataFacts.parse(facts.text(), "here") == facts


def test_facts_that_were_not_read_are_written_in_a_fixed_order():
    assert list(PIXELS.to_json()) == ["kind", "num_images", "img_resolution", "sigma_data"]


BAD = {
    "no JSON": ("{", r"is not valid JSON \(.*\); prepare the data again or delete the file"),
    "no text": (b"\xff\xfe\xfa", "is not valid JSON"),
    "no object": ("[]", "holds a list, but must hold an object"),
    "kind": ({"kind": 1}, "kind is 1, but must be a string"),
    "num_images": ({"num_images": 1.5}, r"num_images is 1\.5, but must be a whole number"),
    "img_resolution": ({"img_resolution": "8"}, "img_resolution is '8', but must be a whole number"),
    "img_channels": ({"img_channels": True}, "img_channels is True, but must be a whole number"),
    "label_dim": ({"label_dim": [10]}, r"label_dim is \[10\], but must be a whole number"),
    "images_per_class": ({"images_per_class": {"0": "many"}}, "images_per_class is .*, but must be an object of whole"),
    "class_names": ({"class_names": ["a", 1]}, "class_names is .*, but must be a list of strings"),
    "mean": ({"mean": ["0"]}, "mean is .*, but must be a list of numbers"),
    "std": ({"std": 0.5}, "std is .*, but must be a list of numbers"),
    "sigma_data": ({"sigma_data": "0.5"}, r"sigma_data is '0\.5', but must be a number"),
    "settings": ({"settings": []}, r"settings is \[\], but must be an object"),
    "streams": ({"streams": {}}, r"streams is \{\}, but must be a list"),
    "a stream": ({"streams": [1]}, "holds a int, but must hold an object"),
    "in a stream": ({"streams": [{"sigma_data": "a"}]}, "sigma_data is 'a', but must be a number"),
    "whitening without std": ({"whitening": {"mean": [1]}}, "whitening in stats.json is not a list of numbers as mean"),
    "whitening of words": ({"whitening": {"mean": "many", "std": "many"}}, "is not a list of numbers as mean and as"),
    "whitening alone": ({"whitening": 1}, "whitening in stats.json is not a list of numbers"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_bad_facts_name_place_and_key(content: Any, message: str):
    text = json.dumps(content) if isinstance(content, dict) else content
    with pytest.raises(DataError, match=f"^here: .*{message}"):
        DataFacts.parse(text, "here")


def test_kind_completes_the_facts():
    assert DataFacts().of_kind("pixels", "here") == DataFacts(kind="pixels")
    latents = DataFacts(img_channels=4).of_kind("latents", "here")
    assert latents == DataFacts(kind="latents", img_channels=4, whitening=STABLE_DIFFUSION)
    own = Whitening((1.0,), (2.0,))
    assert DataFacts(whitening=own).of_kind("latents", "here").latent_whitening == own
    assert DataFacts(whitening=own).of_kind("pixels", "here").latent_whitening is None


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (DataFacts(kind="pixels"), "says kind pixels, but the shards have the columns of latents"),
        (DataFacts(img_channels=3), "has 4 means and 4 standard deviations for latents of 3 channels"),
        (DataFacts(whitening=Whitening((1.0, 2.0), (1.0,))), "has 2 means and 1 standard deviations"),
        (DataFacts(whitening=Whitening((1.0,), (0.0,))), "standard deviations above 0"),
    ],
)
def test_facts_at_odds_with_latents(facts: DataFacts, message: str):
    with pytest.raises(DataError, match=f"^here: .*{message}"):
        facts.of_kind("latents", "here")


def test_kind_follows_the_columns():
    assert kind_of(["label", "image"], "here") == "pixels"
    assert kind_of(["std", "label", "mean"], "here") == "latents"
    with pytest.raises(DataError, match=r"here: has the columns \['image'\], but must have image and label"):
        kind_of(["image"], "here")


def test_facts_of_a_mixture():
    other = DataFacts(kind="pixels", img_resolution=8, sigma_data=0.5, num_images=30)
    mixed = mixture([PIXELS, other], [3.0, 1.0], ["one", "two"])
    assert mixed.sigma_data == pytest.approx((0.75 * 0.09 + 0.25 * 0.25) ** 0.5)
    assert (mixed.kind, mixed.img_resolution, mixed.num_images) == ("pixels", 8, None)
    assert mixed.streams is not None
    assert [(part.proportion, part.num_images) for part in mixed.streams] == [(3.0, 10), (1.0, 30)]
    assert list(mixed.to_json()["streams"][0]) == ["proportion", "kind", "num_images", "img_resolution", "sigma_data"]
    assert mixture([PIXELS, DataFacts(kind="pixels")], [1, 1], ["one", "two"]).sigma_data is None


def test_what_cannot_be_mixed():
    latents, own = DataFacts().of_kind("latents", "it"), Whitening((0.0,) * 4, (1.0,) * 4)
    with pytest.raises(DataError, match="two: has the kind latents, but one has pixels"):
        mixture([PIXELS, latents], [1, 1], ["one", "two"])
    with pytest.raises(DataError, match=r"two: has the whitening \{'mean': \[0\.0, .*, but one has \{'mean': \[5\.81"):
        mixture([latents, DataFacts(whitening=own).of_kind("latents", "it")], [1, 1], ["one", "two"])
