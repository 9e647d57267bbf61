"""Turns what the loader brought into the images that a step trains on."""

from typing import Any

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger

from recipe.edm2 import latents, rng
from recipe.edm2.augment import Augmentation, augment, mirror
from recipe.edm2.images import to_network


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
