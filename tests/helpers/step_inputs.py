"""What a step trains on, drawn by the recipe's own algorithm: one place in the tests that knows its arguments."""

from typing import Any

import torch

from recipe.configuration.schema import Loss
from recipe.edm2.augment import Augmentation
from recipe.edm2.latents import Whitening
from recipe.training.inputs import ExampleInputs

Tensors = dict[str, torch.Tensor]


def inputs_algorithm(
    seed: int = 0,
    *,
    P_mean: float = -0.4,
    P_std: float = 1.0,
    label_dropout: float = 0.0,
    whitening: Whitening | None = None,
    x_flip: bool = False,
    augmentation: Augmentation | None = None,
) -> ExampleInputs:
    """The algorithm that makes a step's inputs."""
    loss = Loss(P_mean=P_mean, P_std=P_std, label_dropout=label_dropout)
    return ExampleInputs(seed, loss, whitening, x_flip, augmentation)


def step_inputs(batch: Tensors, batch_number: int, seed: int = 0, **settings: Any) -> Tensors:
    """The examples in `batch` as step `batch_number` trains on them; settings as of `inputs_algorithm`."""
    return dict(inputs_algorithm(seed, **settings).draw(batch, batch_number))  # pyright: ignore
