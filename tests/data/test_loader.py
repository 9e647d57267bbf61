"""What a run's loader shows: in the order of the seed, in whole batches, pixels where they were, ids that fit."""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from streaming import MDSWriter

from helpers.commands import train_arguments
from recipe.configuration.reader import read_config
from recipe.data.checks import check_data
from recipe.data.dataset import ImageDataset
from recipe.data.epochs import balanced_draws
from recipe.data.facts import DataError
from recipe.data.loader import training_loader


def first_ids(digits: Path, *overrides: str, batches: int = 4) -> list[int]:
    config = read_config(train_arguments(digits, Path("none"), "data.num_workers=0", *overrides))
    loader = iter(training_loader(config, check_data(config), 16))
    return [int(id) for _ in range(batches) for id in next(loader)["id"]]


def test_order_is_the_seeds(digits: Path):
    order = first_ids(digits)
    assert first_ids(digits, "seed=0") == order
    assert len(set(order)) == 64 and order != sorted(order)
    assert len(set(order) & set(first_ids(digits, "seed=1"))) < 16
    assert first_ids(digits, "data.shuffle=false") == list(range(64))


def test_every_batch_of_an_epoch_is_whole(digits: Path):
    config = read_config(train_arguments(digits, Path("none"), "data.num_workers=0"))
    sizes = {len(batch["id"]) for batch in training_loader(config, check_data(config), 300)}
    assert sizes == {300}


def test_a_batch_of_all_images_is_the_largest(digits: Path):
    for batch, enough in ((5000, True), (5001, False)):
        sizes = (
            f"global_batch_size={batch}",
            f"duration={batch}",
            *(f"{key}={batch}" for key in ("ema.snapshot_interval", "checkpoints.interval", "logging.interval")),
        )
        config = read_config(train_arguments(digits, Path("none"), *sizes))
        if enough:
            assert check_data(config).samples == 5000
        else:
            with pytest.raises(DataError, match="5000 images are fewer than global_batch_size 5001"):
                check_data(config)


PICTURE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)  # height, width, channels


def webp(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "WEBP", lossless=True)
    return file.getvalue()


STORED: dict[str, tuple[str, Any, np.ndarray]] = {  # encoding, what is written, image [C, H, W]
    "png": ("png", Image.fromarray(PICTURE), PICTURE.transpose(2, 0, 1)),
    "grey png": ("png", Image.fromarray(PICTURE[..., 0]), PICTURE[None, ..., 0]),
    "webp": ("bytes", webp(PICTURE), PICTURE.transpose(2, 0, 1)),
    "array": ("ndarray:uint8", PICTURE.transpose(2, 0, 1), PICTURE.transpose(2, 0, 1)),
}


@pytest.mark.parametrize("kind", STORED)
def test_pixels_and_channels_are_where_they_were(kind: str, tmp_path: Path):
    encoding, written, image = STORED[kind]
    with MDSWriter(out=str(tmp_path), columns={"image": encoding, "label": "int"}) as writer:
        writer.write({"image": written, "label": 3})
    shape: dict[str, Any] = {"img_resolution": 8, "img_channels": len(image), "label_dim": 5}
    sample = ImageDataset(**shape, local=str(tmp_path), batch_size=1).get_item(0)
    assert np.array_equal(sample["image"].numpy(), image)
    assert int(sample["label"]) == 3


def test_ids_of_very_many_draws_wrap_around(digits: Path):
    """A counter of random numbers has 32 bits for them."""
    dataset = ImageDataset(img_resolution=8, img_channels=1, label_dim=10, local=str(digits), batch_size=1)
    for draw in (2**32 - 1, 2**32, 3 * 2**32 + 7):
        sample = dataset.get_item(draw)
        assert int(sample["id"]) == draw % 2**32
        assert np.array_equal(sample["image"].numpy(), dataset.get_item(draw % 5000)["image"].numpy())


def test_each_class_gets_the_draws_that_are_left_over_equally_often():
    """103 draws of 5 classes: each epoch draws three of them once more, and over 400 epochs that is 240 times each."""
    labels = np.arange(100) % 5
    more: Counter[int] = Counter()
    for epoch in range(400):
        _, ids = balanced_draws(labels, np.array([100]), 103, np.random.default_rng([3, epoch]))
        drawn = Counter((ids % 5).tolist())
        assert sorted(drawn.values()) == [20, 20, 21, 21, 21]
        more.update(label for label, count in drawn.items() if count == 21)
    assert all(abs(more[label] - 240) < 5 * (400 * 0.6 * 0.4) ** 0.5 for label in range(5))


def test_parts_of_an_epoch_end_where_shards_do():
    units, ids = balanced_draws(np.arange(100) % 5, np.array([40, 40, 20]), 100, np.random.default_rng(1))
    assert (units.tolist(), ids.tolist()) == ([40, 40, 20], list(range(100)))
