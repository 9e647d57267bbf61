"""Trains like recipe/train.py, with one mistake that only several ranks can show: sabotage.py MISTAKE ARGUMENTS..."""

import os
import sys

import torch

from recipe import train
from recipe.training import algorithms, inputs

RANK = int(os.environ["RANK"])


def drop_projection_on_one_rank() -> None:
    project = algorithms.project_weights_
    algorithms.project_weights_ = lambda net: project(net) if RANK == 0 else None


def key_noise_by_rank() -> None:
    draw = inputs.ExampleNoise.draw

    def by_rank(self: inputs.ExampleNoise, batch: dict[str, torch.Tensor], batch_number: int):
        return draw(self, batch | {"id": torch.arange(len(batch["id"]))}, batch_number)

    inputs.ExampleNoise.draw = by_rank


def key_augmentation_by_rank() -> None:
    draw = inputs.ExampleImages.draw

    def by_rank(self: inputs.ExampleImages, batch: dict[str, torch.Tensor], batch_number: int):
        return draw(self, batch | {"id": torch.arange(len(batch["id"]))}, batch_number)

    inputs.ExampleImages.draw = by_rank


def sum_gradients() -> None:
    """What FSDP2 does on gloo by itself."""
    from recipe.training import sharding

    sharding.mend_fsdp_on_cpu = lambda: None


if __name__ == "__main__":
    globals()[sys.argv.pop(1)]()
    train.main()
