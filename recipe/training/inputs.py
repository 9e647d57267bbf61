"""Turns what the loader brought into the images that a step trains on."""

from typing import Any

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger

from recipe.edm2 import latents, rng
from recipe.edm2.augment import Augmentation, augment, mirror
from recipe.edm2.images import to_network
from recipe.edm2.loss import sample_sigma


class ExampleNoise(Algorithm):
    """Draws what is random about each example, keyed by (seed, batch number, sample id).

    Rank, world size and microbatch do not enter, so they cannot change the result. Only dropout draws from torch's
    generator; it is seeded anew each step by (seed, batch number, rank), so that a resumed run repeats it.

    Args:
        seed: of the run.
        P_mean, P_std: see `sample_sigma`.
        label_dropout: share of the examples whose label becomes -1.
        rank: of this process.
    """

    def __init__(self, seed: int, P_mean: float, P_std: float, label_dropout: float = 0.0, rank: int = 0):
        self.seed = seed
        self.P_mean = P_mean
        self.P_std = P_std
        self.label_dropout = label_dropout
        self.rank = rank

    def match(self, event: Event, state: State) -> bool:
        return event in (Event.BATCH_START, Event.BEFORE_FORWARD)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        batch_number = state.timestamp.batch.value
        if event == Event.BATCH_START:
            key = rng.random_bits(self.seed, rng.DROPOUT, batch_number, torch.tensor([self.rank]), 2)[0]
            torch.manual_seed(int(key[0]) << 31 | int(key[1]) >> 1)
        else:
            state.batch = state.batch | self.draw(state.batch, batch_number)

    def draw(self, batch: dict[str, torch.Tensor], batch_number: int) -> dict[str, torch.Tensor]:
        """`sigma` [N], unit `noise` [N, C, H, W] and `label` [N] for the examples in `batch`."""
        ids = batch["id"]
        rnd_normal = rng.normal(self.seed, rng.SIGMA, batch_number, ids)
        drawn = {
            "sigma": sample_sigma(rnd_normal, self.P_mean, self.P_std),
            "noise": rng.normal(self.seed, rng.NOISE, batch_number, ids, batch["image"].shape[1:]),
        }
        if self.label_dropout > 0:
            dropped = rng.uniform(self.seed, rng.LABEL_DROP, batch_number, ids) <= self.label_dropout
            drawn["label"] = batch["label"].masked_fill(dropped, -1)
        return drawn


class ExampleImages(Algorithm):
    """Draws latents afresh and whitens them, or mirrors and augments pixels, before the noise is added.

    Everything is keyed by (seed, batch number, sample id). Only the training loop knows the batch number, so this runs
    here, on the device, as in EDM's code, and not in the loader's workers, which decode.

    Args:
        seed: of the run.
        whitening: of latents; None = the data are pixels.
        x_flip: mirror half of the images; the network is not told.
        augmentation: transforms that the network is told about; None = none.
    """

    def __init__(
        self,
        seed: int,
        whitening: latents.Whitening | None = None,
        x_flip: bool = False,
        augmentation: Augmentation | None = None,
    ):
        assert whitening is None or not (x_flip or augmentation)
        self.seed = seed
        self.whitening = whitening
        self.x_flip = x_flip
        self.augmentation = augmentation

    def match(self, event: Event, state: State) -> bool:
        return event == Event.BEFORE_FORWARD

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        state.batch = state.batch | self.draw(state.batch, state.timestamp.batch.value)

    def draw(self, batch: dict[str, torch.Tensor], batch_number: int) -> dict[str, torch.Tensor]:
        """`image` [N, C, H, W] for the examples in `batch`, and `augment` [N, 9], what the network is told of it."""
        ids = batch["id"]
        if self.whitening is not None:
            drawn = latents.draw(batch["mean"], batch["std"], self.seed, batch_number, ids)
            return {"image": latents.whiten(drawn, self.whitening)}
        images = batch["image"]
        if self.x_flip:
            images = mirror(images, rng.uniform(self.seed, rng.X_FLIP, batch_number, ids) <= 0.5)
        if self.augmentation is None:
            return {"image": images}
        images, conditions = augment(to_network(images), ids, self.augmentation, self.seed, batch_number)
        return {"image": images, "augment": conditions}


def example_images(config: Any, whitening: latents.Whitening | None) -> ExampleImages:
    """As the configuration and the data ask for."""
    augmentation = None if config.augment is None else Augmentation(**config.augment.model_dump())
    return ExampleImages(config.seed, whitening, config.data.x_flip, augmentation)
