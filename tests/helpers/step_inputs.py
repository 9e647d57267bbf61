"""What a step trains on, drawn by the recipe's own algorithms: the one place in the tests that knows their names."""

from typing import Any

import torch
from composer.core import Algorithm

from recipe.edm2.augment import Augmentation
from recipe.edm2.latents import Whitening
from recipe.training.inputs import ExampleImages, ExampleNoise

Tensors = dict[str, torch.Tensor]


def input_algorithms(
    seed: int = 0,
    *,
    P_mean: float = -0.4,
    P_std: float = 1.0,
    label_dropout: float = 0.0,
    whitening: Whitening | None = None,
    x_flip: bool = False,
    augmentation: Augmentation | None = None,
    rank: int = 0,
) -> list[Algorithm]:
    """The algorithms that make a step's inputs, in their order."""
    return [
        ExampleImages(seed, whitening, x_flip, augmentation),
        ExampleNoise(seed, P_mean, P_std, label_dropout, rank),
    ]


def step_inputs(batch: Tensors, batch_number: int, seed: int = 0, **settings: Any) -> Tensors:
    """The examples in `batch` as step `batch_number` trains on them; settings as of `input_algorithms`."""
    for algorithm in input_algorithms(seed, **settings):
        batch = batch | algorithm.draw(batch, batch_number)  # pyright: ignore[reportAttributeAccessIssue]
    return batch
