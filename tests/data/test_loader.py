"""The order in which a run's loader shows the samples: by seed and epoch, whole batches only."""

from pathlib import Path

from helpers.commands import train_arguments
from recipe.configuration.reader import read_config
from recipe.data.checks import check_data
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
