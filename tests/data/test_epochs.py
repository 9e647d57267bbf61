"""What an epoch draws: each class equally often, several data sets by proportion, the same on any ranks."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streaming import MDSWriter
from streaming.base.batching import generate_work
from streaming.base.world import World

from helpers.commands import train_arguments
from helpers.forks import train
from helpers.runs import losses
from recipe.configuration.reader import read_config
from recipe.data.checks import check_data
from recipe.data.dataset import ImageDataset
from recipe.data.epochs import balanced_draws, occurrences
from recipe.data.facts import DataError
from recipe.data.index import Source, open_source
from recipe.data.labels import read_labels
from recipe.data.loader import training_loader
from recipe.edm2 import rng
from recipe.weights.snapshots import SnapshotReader, list_snapshots

COUNTS = [50, 30, 15, 4, 1]  # images per class
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(5), COUNTS))


@pytest.fixture(scope="module")
def unequal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 images of 8x8 pixels in five classes of 50 to 1, in several shards; image i is full of i. Read-only."""
    return write(tmp_path_factory.mktemp("unequal") / "shards", LABELS.tolist())


def write(folder: Path, labels: list[int], first: int = 0) -> Path:
    columns = {"image": "ndarray:uint8", "label": "int"}
    with MDSWriter(out=str(folder), columns=columns, size_limit=2000) as writer:
        for index, label in enumerate(labels):
            writer.write({"image": np.full((1, 8, 8), first + index, np.uint8), "label": int(label)})
    return folder


def balanced(folder: Path, batch_size: int = 20) -> ImageDataset:
    labels = read_labels(open_source(Source("data", str(folder), None)))
    shape = {"img_resolution": 8, "img_channels": 1, "label_dim": 5}
    order = {"shuffle": True, "shuffle_seed": 3, "num_canonical_nodes": 1}
    return ImageDataset(**shape, labels=labels, local=str(folder), batch_size=batch_size, **order)


def batches(dataset: ImageDataset, ranks: int = 1, epoch: int = 0, start: int = 0, workers: int = 1) -> list[list[int]]:
    """The ids of each global batch of 20, as `ranks` ranks would be given them."""
    dataset.batch_size = 20 // ranks
    world = World(1, ranks, workers, 0)
    dataset._set_shuffle_block_size(world)
    work = generate_work("random", dataset, world, epoch, start)  # (nodes, ranks, workers, batches, samples)
    count = (100 - start) // 20
    return [sorted(work[0, :, index % workers, index // workers].flatten().tolist()) for index in range(count)]


def test_occurrences():
    assert occurrences(np.array([5, 3, 5, 5, 3, 9])).tolist() == [0, 0, 1, 2, 1, 0]
    assert occurrences(np.array([7])).tolist() == [0]


def test_each_class_and_each_image_of_it_is_drawn_equally_often():
    sizes = np.array([40, 40, 20])
    units, ids = balanced_draws(LABELS, sizes, 103, np.random.default_rng(1))
    assert units.sum() == len(ids) == 103
    drawn = Counter(LABELS[ids].tolist())
    assert sorted(drawn.values()) == [20, 20, 21, 21, 21]
    times = np.bincount(ids, minlength=100)
    for label in range(5):
        of_class = times[label == LABELS]
        assert of_class.max() - of_class.min() <= 1
    # each part lies in one shard, in order, and draws no sample twice
    ends = units.cumsum()
    for begin, end in zip(ends - units, ends, strict=True):
        part = ids[begin:end]
        assert (np.diff(part) > 0).all()
        assert len(set(np.searchsorted(sizes.cumsum(), part, side="right"))) == 1


def test_balanced_draws_of_equal_classes_draw_each_once():
    labels = np.arange(100) % 5
    _, ids = balanced_draws(labels, np.array([100]), 100, np.random.default_rng(1))
    assert ids.tolist() == list(range(100))


def test_classes_share_the_further_draws_over_the_epochs(unequal: Path):
    dataset = balanced(unequal)
    shown = [set(np.concatenate(batches(dataset, epoch=epoch)) % 100) for epoch in range(8)]
    largest = set(np.flatnonzero(LABELS == 0).tolist())
    assert all(len(epoch & largest) == 20 for epoch in shown)
    assert len(largest - set.union(*shown)) <= 5  # 50 * 0.6^8 = 0.8 are to be missed on average


def test_balanced_epoch_through_the_data_set(unequal: Path):
    dataset = balanced(unequal)
    samples = list(dataset)
    assert Counter(int(sample["label"]) for sample in samples) == {label: 20 for label in range(5)}
    ids = [int(sample["id"]) for sample in samples]
    assert len(set(ids)) == 100
    for sample in samples:  # the id says which image it is, whatever the draw
        assert int(sample["image"][0, 0, 0]) == int(sample["id"]) % 100
        assert int(sample["label"]) == LABELS[int(sample["id"]) % 100]
    only = int(np.flatnonzero(LABELS == 4)[0])
    assert sorted(id for id in ids if id % 100 == only) == [only + 100 * draw for draw in range(20)]


def test_balanced_epochs_are_the_same_on_any_ranks_and_differ_from_each_other(unequal: Path):
    dataset = balanced(unequal)
    first = batches(dataset)
    assert batches(balanced(unequal)) == first
    for ranks, workers in ((2, 1), (4, 1), (2, 2)):
        assert batches(dataset, ranks, workers=workers) == first
    assert batches(dataset, epoch=1) != first
    dataset.shuffle_seed = 4
    assert batches(dataset) != first


def test_balanced_epoch_resumes_where_it_stopped(unequal: Path):
    dataset = balanced(unequal)
    assert batches(dataset, start=40) == batches(dataset)[2:]
    assert batches(dataset, ranks=2, start=40) == batches(dataset)[2:]


def test_labels_from_the_file_or_the_shards(unequal: Path, tmp_path: Path):
    shards = shutil.copytree(unequal, tmp_path / "shards")
    here, there = Source("data", str(shards), None), Source("data", "cache", str(shards))
    assert np.array_equal(read_labels(open_source(here)), LABELS)
    with pytest.raises(DataError, match=r"data\.remote .*: holds no labels\.npy, which data\.class_balanced needs"):
        read_labels(open_source(there))
    np.save(shards / "labels.npy", LABELS.astype(np.int32))
    for place in (here, there):
        assert np.array_equal(read_labels(open_source(place)), LABELS)
        assert read_labels(open_source(place)).dtype == np.int64


BAD_LABELS = {
    "too few": (LABELS[:50], r"holds int64 \[50\], but must hold an integer for each of 100 samples"),
    "floats": (LABELS.astype(float), r"holds float64 \[100\], but must hold an integer"),
    "without a class": (np.where(LABELS == 1, -1, LABELS), "30 of 100 samples have no class"),
    "pickled": (np.array([{}] * 100, dtype=object), "is not an array of NumPy"),
}


@pytest.mark.parametrize(("labels", "message"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_bad_labels(unequal: Path, tmp_path: Path, labels: np.ndarray, message: str):
    shards = shutil.copytree(unequal, tmp_path / "shards")
    np.save(shards / "labels.npy", labels, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        read_labels(open_source(Source("data", str(shards), None)))
    with pytest.raises(DataError, match=message):
        check_data(config_for(tmp_path, f"data.local={shards}", "data.class_balanced=true"))


def config_for(tmp_path: Path, *overrides: str) -> Any:
    fixed = [
        "data.num_workers=0",
        "model.label_dim=5",
        "global_batch_size=20",
        "duration=10ba",
        "optimizer.rampup=20",
        "data.shuffle=true",
    ]
    return read_config(train_arguments(tmp_path, tmp_path / "run", *fixed, *overrides))


@pytest.fixture
def two_streams(unequal: Path, tmp_path: Path) -> list[str]:
    """Overrides that mix the 100 images with 20 others, full of 200 to 219, three to one."""
    other = write(tmp_path / "other", [0] * 20, first=200)
    note = {"img_resolution": 8, "img_channels": 1, "label_dim": 5}
    (other / "stats.json").write_text(json.dumps(note | {"sigma_data": 0.4}))
    streams = f"[{{local: {unequal}, proportion: 3}}, {{local: {other}, proportion: 1}}]"
    return ["data.local=null", f"data.streams={streams}"]


def test_streams_are_mixed_by_proportion(two_streams: list[str], tmp_path: Path):
    config = config_for(tmp_path, *two_streams)
    data = check_data(config)
    assert data.samples == 120
    assert [part.proportion for part in data.facts.streams or ()] == [3.0, 1.0]
    loaded = list(training_loader(config, data, 20))
    values = torch.cat([batch["image"][:, 0, 0, 0] for batch in loaded])
    assert (len(values), int((values >= 200).sum())) == (120, 30)
    ids = torch.cat([batch["id"] for batch in loaded])
    assert len(set(ids.tolist())) == 120  # the 20 images that are drawn again have other ids
    assert all(int(id) % 120 == (value if value < 200 else value - 100) for id, value in zip(ids, values, strict=True))


def test_each_stream_is_checked(two_streams: list[str], tmp_path: Path):
    with pytest.raises(DataError, match=r"data\.streams\[1\]\.local .*: model\.img_channels is 3, but the data has 1"):
        check_data(config_for(tmp_path, *two_streams, "model.img_channels=3"))
    (tmp_path / "other" / "index.json").unlink()
    with pytest.raises(DataError, match=r"data\.streams\[1\]\.local .*: holds no index\.json"):
        check_data(config_for(tmp_path, *two_streams))
    gone = f"[{{local: {tmp_path}/cache, remote: {tmp_path}/gone, proportion: 1}}]"
    with pytest.raises(DataError, match=r"data\.streams\[0\]\.remote .*/gone: holds no index\.json"):
        check_data(config_for(tmp_path, "data.local=null", f"data.streams={gone}"))


def test_copies_of_a_sample_have_noise_of_their_own():
    noise = rng.normal(0, rng.NOISE, 0, torch.tensor([7, 107, 207]), (64,))
    assert torch.corrcoef(noise).fill_diagonal_(0).abs().max() < 0.6


@pytest.mark.slow
def test_a_balanced_run_resumed_is_the_same(unequal: Path, tmp_path: Path):
    """Two and a half epochs at once, and in three parts; and sigma_data is the data's."""
    shards = shutil.copytree(unequal, tmp_path / "shards")
    (shards / "stats.json").write_text(json.dumps({"kind": "pixels", "sigma_data": 0.45}))
    settings = [
        "data.class_balanced=true",
        "model.label_dim=5",
        "global_batch_size=20",
        "optimizer.rampup=200",
        "model.sigma_data=auto",
        "checkpoints.interval=1ba",
        "ema.snapshot_interval=12ba",
    ]

    def train_to(name: str, batches: int) -> None:
        done = train(shards, tmp_path / name, *settings, f"duration={batches}ba")
        assert done.returncode == 0, done.stdout + done.stderr

    train_to("whole", 12)
    for length in (3, 5, 12):
        train_to("parts", length)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    snapshot = list_snapshots(tmp_path / "whole" / "snapshots")[0].path
    with SnapshotReader(snapshot) as reader:
        assert reader.info.network["sigma_data"] == 0.45
    assert "sigma_data: 0.45" in (tmp_path / "whole" / "config.yaml").read_text()
    note = json.loads((shards / "stats.json").read_text())
    (shards / "stats.json").write_text(json.dumps(note | {"sigma_data": 0.6}))
    refused = train(shards, tmp_path / "whole", *settings, "duration=13ba")
    assert refused.returncode == 2 and "model.sigma_data was 0.45 and is now 0.6" in refused.stderr, refused.stderr


def test_labels_beside_a_column_of_pickles_are_refused(tmp_path: Path):
    """A sample is decoded whole, and a pickle can run any code."""
    sprung = tmp_path / "sprung"

    class Trap:
        def __reduce__(self):
            return Path.touch, (sprung,)

    with MDSWriter(out=str(tmp_path / "trap"), columns={"image": "ndarray", "label": "int", "extra": "pkl"}) as writer:
        writer.write({"image": np.zeros((1, 8, 8), np.uint8), "label": 0, "extra": Trap()})
    with pytest.raises(DataError, match="Column extra contains an unsafe type: pkl"):
        read_labels(open_source(Source("data", str(tmp_path / "trap"), None)))
    assert not sprung.exists()
