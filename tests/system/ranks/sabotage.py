"""Trains like recipe/train.py, with one mistake that only several ranks can show: sabotage.py MISTAKE ARGUMENTS..."""

import os
import sys
from typing import Any

import torch

from recipe import train
from recipe.training import algorithms, inputs

RANK = int(os.environ["RANK"])


def drop_projection_on_one_rank() -> None:
    project = algorithms.project_weights_
    algorithms.project_weights_ = lambda net: project(net) if RANK == 0 else None


def key_noise_by_rank() -> None:
    draw_noise = inputs.ExampleInputs.draw_noise

    def by_rank(self: inputs.ExampleInputs, ids: torch.Tensor, shape: torch.Size, batch_number: int):
        return draw_noise(self, torch.arange(len(ids)), shape, batch_number)

    inputs.ExampleInputs.draw_noise = by_rank


def key_augmentation_by_rank() -> None:
    draw_images = inputs.ExampleInputs.draw_images

    def by_rank(self: inputs.ExampleInputs, loaded: Any, batch_number: int):
        return draw_images(self, loaded | {"id": torch.arange(len(loaded["id"]))}, batch_number)

    inputs.ExampleInputs.draw_images = by_rank


def sum_gradients() -> None:
    """What FSDP2 does on gloo by itself."""
    from recipe.training import sharding

    sharding.repair_fsdp_on_cpu = lambda: None


if __name__ == "__main__":
    globals()[sys.argv.pop(1)]()
    train.main()
