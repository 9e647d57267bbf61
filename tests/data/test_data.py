"""From images to shards and back, and what bad data is answered with."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import assert_refused, train_arguments
from helpers.forks import train
from recipe.configuration.inputs import Data
from recipe.configuration.reader import read_config
from recipe.configuration.schema import Config, Model
from recipe.data.checks import check_data, check_shape
from recipe.data.dataset import ImageDataset
from recipe.data.facts import DataError, DataFacts
from recipe.data.index import Source, check_shards, number_of_samples, open_source, sources
from recipe.preparation.sources.digits import embedded_digits

NETWORK: dict[str, Any] = {"img_resolution": 8, "img_channels": 1, "label_dim": 10}


def config_for(shards: Path, *overrides: str) -> Config:
    return read_config(train_arguments(shards, shards / "run", *overrides))


def copy_of(digits: Path, tmp_path: Path) -> Path:
    return shutil.copytree(digits, tmp_path / "shards")


def test_facts_are_those_of_the_images(digits: Path):
    images, _ = embedded_digits(8)
    facts = check_data(config_for(digits)).facts
    assert facts.img_resolution == 8
    assert facts.images_per_class == {str(label): 500 for label in range(10)}
    assert facts.sigma_data == pytest.approx((images / 127.5 - 1).std())


def test_whole_shards_are_accepted(digits: Path):
    assert number_of_samples(check_shards(str(digits))) == 5000


def damage_missing_folder(shards: Path) -> str:
    shutil.rmtree(shards)
    return "holds no index.json"


def damage_truncated_shard(shards: Path) -> str:
    shard = shards / "shard.00000.mds"
    shard.write_bytes(shard.read_bytes()[:-100])
    return f"{shard}: the shard has"


def damage_longer_shard(shards: Path) -> str:
    """Of another preparation than the index."""
    shard = shards / "shard.00000.mds"
    shard.write_bytes(shard.read_bytes() + b"x")
    return f"{shard}: the shard has"


def damage_missing_shard(shards: Path) -> str:
    (shards / "shard.00000.mds").unlink()
    return f"{shards / 'shard.00000.mds'}: the shard is missing"


def damage_broken_index(shards: Path) -> str:
    (shards / "index.json").write_text("{")
    return f"{shards / 'index.json'}: is not an MDS index"


def damage_empty_index(shards: Path) -> str:
    (shards / "index.json").write_text('{"version": 2, "shards": []}')
    return "lists no samples"


def damage_broken_statistics(shards: Path) -> str:
    (shards / "stats.json").write_text("not JSON")
    return f"{shards / 'stats.json'}: is not valid JSON"


DAMAGES = [
    damage_missing_folder,
    damage_truncated_shard,
    damage_longer_shard,
    damage_missing_shard,
    damage_broken_index,
    damage_empty_index,
    damage_broken_statistics,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_data_is_named(digits: Path, tmp_path: Path, damage):
    shards = copy_of(digits, tmp_path)
    message = damage(shards)
    with pytest.raises(DataError) as error:
        check_data(config_for(shards))
    assert message in str(error.value)


@pytest.mark.parametrize(("key", "value"), [("img_resolution", 16), ("img_channels", 3), ("label_dim", 5)])
def test_data_at_odds_with_the_configuration_names_the_key(key: str, value: int):
    with pytest.raises(DataError, match=rf"here: model\.{key} is {value}, but the data has {NETWORK[key]}"):
        check_shape(DataFacts(**NETWORK), Model.model_validate(NETWORK | {key: value}), "here")
    said = {name: number for name, number in NETWORK.items() if name != key}
    check_shape(DataFacts(**said), Model.model_validate(NETWORK | {key: value}), "here")


def test_all_that_differs_is_named_at_once():
    with pytest.raises(DataError, match=r"img_resolution is 16, .*; model\.img_channels is 3, .*; change these keys"):
        check_shape(DataFacts(**NETWORK), Model(img_resolution=16, img_channels=3, label_dim=10), "here")


def test_unconditional_training_on_labelled_images(digits: Path):
    check_shape(DataFacts(**NETWORK), Model.model_validate(NETWORK | {"label_dim": 0}), "here")
    dataset = ImageDataset(**{**NETWORK, "label_dim": 0}, local=str(digits), batch_size=4, shuffle=False)
    assert dataset[7]["label"] == -1


def remote(address: object) -> Source:
    return Source("data", "cache", str(address))


def test_remote_data_is_described_before_it_is_streamed(digits: Path, tmp_path: Path):
    here = open_source(Source("data", str(digits), None))
    there = open_source(remote(digits))
    assert (there.shards, there.facts, there.samples) == (here.shards, here.facts, 5000)
    shards = copy_of(digits, tmp_path)
    (shards / "stats.json").unlink()
    assert open_source(remote(shards)).facts == DataFacts()
    with pytest.raises(DataError, match=rf"data\.remote {tmp_path}/none: holds no index\.json"):
        open_source(remote(f"{tmp_path}/none"))
    with pytest.raises(DataError, match=r"data\.remote nowhere://x: index\.json cannot be read .*credentials"):
        open_source(remote("nowhere://x"))


@pytest.mark.parametrize("name", ["index.json", "stats.json"])
def test_damaged_remote_files_are_named_by_their_address(name: str, digits: Path, tmp_path: Path):
    shards = copy_of(digits, tmp_path)
    (shards / name).write_text("{")
    with pytest.raises(DataError, match=f"^{shards}/{name}: is not"):
        open_source(remote(shards))


def test_sources_are_those_of_the_configuration():
    assert sources(Data(local="a", remote="b")) == [Source("data", "a", "b")]
    streams: Any = [{"local": "a", "proportion": 3.0}, {"local": "b", "remote": "c", "proportion": 1.0}]
    assert sources(Data(streams=streams)) == [
        Source("data.streams[0]", "a", None, 3.0),
        Source("data.streams[1]", "b", "c", 1.0),
    ]


def test_less_data_than_a_batch(digits: Path):
    with pytest.raises(DataError, match="5000 images are fewer than global_batch_size 8192"):
        check_data(config_for(digits).model_copy(update={"global_batch_size": 8192}))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"img_resolution": 16}, r"shard\.00000\.mds, sample 3 has an image of shape \[1, 8, 8\]"),
        ({"img_channels": 3}, r"ask for \[3, 8, 8\]"),
        ({"label_dim": 0 + 1}, r"has label \d, but model\.label_dim 1 allows"),
    ],
)
def test_samples_without_statistics_are_checked_one_by_one(digits: Path, network: dict[str, Any], message: str):
    dataset = ImageDataset(**NETWORK | network, local=str(digits), batch_size=4, shuffle=False)
    index = 4999 if "label_dim" in network else 3
    with pytest.raises(DataError, match=message):
        dataset[index]


@pytest.mark.slow
def test_training_refuses_bad_data_before_it_writes_anything(digits: Path, tmp_path: Path):
    shards = copy_of(digits, tmp_path)
    damage_truncated_shard(shards)
    done = train(shards, tmp_path / "run")
    assert_refused(done, str(shards / "shard.00000.mds"), "cut short")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_bad_label_met_while_training_is_named(digits: Path, tmp_path: Path):
    shards = copy_of(digits, tmp_path)
    (shards / "stats.json").unlink()
    done = train(shards, tmp_path / "run", "model.label_dim=9")
    assert_refused(done, "shard.00000.mds, sample", "has label 9, but model.label_dim 9 allows 0 to 8")


def test_index_of_the_digits_has_hashes(digits: Path):
    index = json.loads((digits / "index.json").read_text())
    assert all(shard["raw_data"]["hashes"]["sha1"] for shard in index["shards"])
