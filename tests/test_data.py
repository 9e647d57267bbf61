"""From images to shards and back, and what bad data is answered with."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from commands import assert_refused, command_line, run, train_arguments
from recipe.prepare import embedded_digits, finished_work, prepare, statistics, write_shards
from recipe.training.data import (
    DataError,
    ImageDataset,
    check_data,
    check_shards,
    check_statistics,
    read_remote,
    read_statistics,
)

NETWORK = {"img_resolution": 8, "img_channels": 1, "label_dim": 10}


def copy_of(digits: Path, tmp_path: Path) -> Path:
    return shutil.copytree(digits, tmp_path / "shards")


def test_digits_are_real_padded_or_reduced():
    large, labels = embedded_digits(32)
    assert large.shape == (5000, 1, 32, 32)
    assert large.dtype == np.uint8
    assert np.bincount(labels).tolist() == [500] * 10
    assert not large[:, :, :2].any()  # padding
    assert large.max() == 255
    small, _ = embedded_digits(16)
    box = large.reshape(5000, 1, 16, 2, 16, 2).mean(axis=(3, 5))
    assert np.abs(small - box).max() <= 1  # Pillow rounds after each of its two passes


@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_round_trip_through_shards(tmp_path: Path, encoding: str):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 3, 8, 8), dtype=np.uint8)
    write_shards(zip(images, range(20), strict=True), tmp_path / "shards", encoding)
    dataset = ImageDataset(
        img_resolution=8, img_channels=3, label_dim=20, local=str(tmp_path / "shards"), batch_size=4, shuffle=False
    )
    for index, image in enumerate(images):
        sample = dataset[index]
        assert sample["image"].dtype == torch.uint8
        assert torch.equal(sample["image"], torch.from_numpy(image))
        assert (sample["label"].item(), sample["id"].item()) == (index, index)


def test_statistics(digits: Path):
    images, labels = embedded_digits(8)
    noted = read_statistics(str(digits))
    assert noted["img_resolution"] == 8
    assert noted["images_per_class"] == {str(label): 500 for label in range(10)}
    assert noted["sigma_data"] == pytest.approx((images / 127.5 - 1).std())
    assert statistics(images[:10], labels[:10])["num_images"] == 10


def test_preparing_again_keeps_finished_work_and_refuses_other_work(digits: Path, tmp_path: Path):
    shards = copy_of(digits, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in shards.iterdir()}
    again = run(command_line("prepare.py", "digits", "--out", shards, "--resolution", 8))
    assert again.returncode == 0
    assert "already holds 5000 images of 1x8x8" in again.stdout
    assert_refused(
        run(command_line("prepare.py", "digits", "--out", shards, "--resolution", 16)), str(shards), "delete"
    )
    assert {path: path.stat().st_mtime_ns for path in shards.iterdir()} == before


def test_interrupted_preparation_leaves_nothing_that_looks_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "digits"

    def write_half(samples, folder: Path, encoding: str) -> None:
        write_shards(list(samples)[:100], folder, encoding)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("recipe.prepare.write_shards", write_half)
        with pytest.raises(KeyboardInterrupt):
            prepare("digits", out, 8, "png")
    assert finished_work(out, "digits", 8, "png") is None
    prepare("digits", out, 8, "png")
    assert check_shards(str(out)) == 5000
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


def test_whole_shards_are_accepted(digits: Path):
    assert check_shards(str(digits)) == 5000


def damage_missing_folder(shards: Path) -> str:
    shutil.rmtree(shards)
    return "holds no index.json"


def damage_truncated_shard(shards: Path) -> str:
    shard = shards / "shard.00000.mds"
    shard.write_bytes(shard.read_bytes()[:-100])
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
    damage_missing_shard,
    damage_broken_index,
    damage_empty_index,
    damage_broken_statistics,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_data_is_named(digits: Path, tmp_path: Path, damage):
    shards = copy_of(digits, tmp_path)
    message = damage(shards)
    data = SimpleNamespace(local=str(shards), remote=None)
    config = SimpleNamespace(data=data, model=SimpleNamespace(**NETWORK), global_batch_size=16)
    with pytest.raises(DataError) as error:
        check_data(config)
    assert message in str(error.value)


@pytest.mark.parametrize(("key", "value"), [("img_resolution", 16), ("img_channels", 3), ("label_dim", 5)])
def test_data_at_odds_with_the_configuration_names_the_key(digits: Path, key: str, value: int):
    config = SimpleNamespace(data=SimpleNamespace(local=str(digits)), model=SimpleNamespace(**NETWORK | {key: value}))
    with pytest.raises(DataError, match=rf"model\.{key} is {value}, but the data has {NETWORK[key]}"):
        check_statistics(read_statistics(str(digits)), config, "here")


def test_unconditional_training_on_labelled_images(digits: Path):
    config = SimpleNamespace(
        data=SimpleNamespace(local=str(digits)), model=SimpleNamespace(**NETWORK | {"label_dim": 0})
    )
    check_statistics(read_statistics(str(digits)), config, "here")
    dataset = ImageDataset(**NETWORK | {"label_dim": 0}, local=str(digits), batch_size=4, shuffle=False)
    assert dataset[7]["label"] == -1


def test_remote_data_is_described_before_it_is_streamed(digits: Path, tmp_path: Path):
    assert read_remote(str(digits)) == (5000, read_statistics(str(digits)))
    shards = copy_of(digits, tmp_path)
    (shards / "stats.json").unlink()
    assert read_remote(str(shards)) == (5000, {})
    with pytest.raises(DataError, match=rf"data\.remote {tmp_path}/none: holds no index\.json"):
        read_remote(f"{tmp_path}/none")
    with pytest.raises(DataError, match=r"data\.remote nowhere://x: index\.json cannot be read .*credentials"):
        read_remote("nowhere://x")


def test_less_data_than_a_batch(digits: Path):
    data = SimpleNamespace(local=str(digits), remote=None)
    config = SimpleNamespace(data=data, model=SimpleNamespace(**NETWORK), global_batch_size=8192)
    with pytest.raises(DataError, match="5000 images are fewer than global_batch_size 8192"):
        check_data(config)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"img_resolution": 16}, r"shard\.00000\.mds, sample 3 has an image of shape \[1, 8, 8\]"),
        ({"img_channels": 3}, r"ask for \[3, 8, 8\]"),
        ({"label_dim": 0 + 1}, r"has label \d, but model\.label_dim 1 allows"),
    ],
)
def test_samples_without_statistics_are_checked_one_by_one(digits: Path, network: dict[str, int], message: str):
    dataset = ImageDataset(**NETWORK | network, local=str(digits), batch_size=4, shuffle=False)
    index = 4999 if "label_dim" in network else 3
    with pytest.raises(DataError, match=message):
        dataset[index]


@pytest.mark.slow
def test_training_refuses_bad_data_before_it_writes_anything(digits: Path, tmp_path: Path):
    shards = copy_of(digits, tmp_path)
    damage_truncated_shard(shards)
    done = run(command_line("train.py", *train_arguments(shards, tmp_path / "run")))
    assert_refused(done, str(shards / "shard.00000.mds"), "cut short")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_bad_label_met_while_training_is_named(digits: Path, tmp_path: Path):
    shards = copy_of(digits, tmp_path)
    (shards / "stats.json").unlink()
    done = run(command_line("train.py", *train_arguments(shards, tmp_path / "run", "model.label_dim=9")))
    assert_refused(done, "shard.00000.mds, sample", "has label 9, but model.label_dim 9 allows 0 to 8")


def test_index_of_the_digits_has_hashes(digits: Path):
    index = json.loads((digits / "index.json").read_text())
    assert all(shard["raw_data"]["hashes"]["sha1"] for shard in index["shards"])
