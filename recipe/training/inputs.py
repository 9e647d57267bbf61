"""What a step trains on: the images that the loader brought, and all that is random about them.

Everything here is keyed by (seed, batch number, sample id). Only the training loop knows the batch number, so all of it
happens here, on the device, and not in the loader's workers, which decode.
"""

from typing import TypedDict

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from torch import Tensor

from recipe.configuration.schema import Loss
from recipe.edm2 import latents, rng
from recipe.edm2.augment import Augmentation, augment, mirror
from recipe.edm2.images import to_network
from recipe.edm2.loss import sample_sigma


class _Examples(TypedDict):
    label: Tensor  # int64 [N]; -1 = unconditional
    id: Tensor  # int64 [N], another one for each time that a sample is shown in an epoch


class LoadedPixels(_Examples):
    """What the loader brings of pixels."""

    image: Tensor  # uint8 [N, C, H, W], or float in the network's range


class LoadedLatents(_Examples):
    """What the loader brings of latents."""

    mean: Tensor  # of each latent pixel's distribution, [N, C, H, W], any float dtype
    std: Tensor


class _Noisy(_Examples):
    image: Tensor  # float32 [N, C, H, W] in the network's range
    sigma: Tensor  # float32 [N], the noise level
    noise: Tensor  # float32 [N, C, H, W], of unit variance


class Batch(_Noisy, total=False):
    """What the model takes: `LoadedPixels` or `LoadedLatents` after `ExampleInputs`."""

    augment: Tensor  # float32 [N, 9], conditions of the augmentation; left out without augmentation


class ExampleInputs(Algorithm):
    """Makes each microbatch ready for the model, and seeds dropout.

    Before forward: latents are drawn and whitened, pixels mirrored, scaled and augmented; noise is drawn, labels are
    dropped. Rank, world size and microbatch do not enter, so they cannot change the result. Only dropout draws from
    torch's generator, which is seeded by (seed, batch number, rank) before each step, so that a resumed run repeats it.

    Args:
        seed: of the run.
        loss: the configuration's section: noise levels and the share of dropped labels.
        whitening: of latents; None = the data are pixels.
        x_flip: mirror half of the images, unknown to the network.
        augmentation: transforms that are the network's conditions; None = none.
        rank: of this process.
    """

    def __init__(
        self,
        seed: int,
        loss: Loss,
        whitening: latents.Whitening | None = None,
        x_flip: bool = False,
        augmentation: Augmentation | None = None,
        rank: int = 0,
    ):
        assert whitening is None or not (x_flip or augmentation)
        self.seed = seed
        self.loss = loss
        self.whitening = whitening
        self.x_flip = x_flip
        self.augmentation = augmentation
        self.rank = rank

    def match(self, event: Event, state: State) -> bool:
        return event in (Event.BATCH_START, Event.BEFORE_FORWARD)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        batch_number = state.timestamp.batch.value
        if event == Event.BATCH_START:
            torch.manual_seed(dropout_seed(self.seed, batch_number, self.rank))
        else:
            state.batch = self.draw(state.batch, batch_number)

    def draw(self, loaded: LoadedPixels | LoadedLatents, batch_number: int) -> Batch:
        """What the model takes, for the examples that the loader brought."""
        ids = loaded["id"]
        image, conditions = self.draw_images(loaded, batch_number)
        sigma, noise = self.draw_noise(ids, image.shape[1:], batch_number)
        label = self.draw_labels(loaded["label"], ids, batch_number)
        batch: Batch = {"image": image, "sigma": sigma, "noise": noise, "label": label, "id": ids}
        if conditions is not None:
            batch["augment"] = conditions
        return batch

    def draw_images(self, loaded: LoadedPixels | LoadedLatents, batch_number: int) -> tuple[Tensor, Tensor | None]:
        """Images, float32 [N, C, H, W] in the network's range, and the conditions [N, 9] of their augmentation."""
        ids = loaded["id"]
        if self.whitening is not None:
            assert "mean" in loaded
            drawn = latents.draw(loaded["mean"], loaded["std"], self.seed, batch_number, ids)
            return latents.whiten(drawn, self.whitening), None
        assert "image" in loaded
        images = loaded["image"]
        if self.x_flip:
            images = mirror(images, rng.uniform(self.seed, rng.X_FLIP, batch_number, ids) <= 0.5)
        images = to_network(images)
        if self.augmentation is None:
            return images, None
        return augment(images, ids, self.augmentation, self.seed, batch_number)

    def draw_noise(self, ids: Tensor, shape: torch.Size, batch_number: int) -> tuple[Tensor, Tensor]:
        """Noise levels [N] and unit noise [N, *shape]."""
        rnd_normal = rng.normal(self.seed, rng.SIGMA, batch_number, ids)
        sigma = sample_sigma(rnd_normal, self.loss.P_mean, self.loss.P_std)
        return sigma, rng.normal(self.seed, rng.NOISE, batch_number, ids, shape)

    def draw_labels(self, labels: Tensor, ids: Tensor, batch_number: int) -> Tensor:
        """Labels [N], of which a share of `loss.label_dropout` became -1."""
        if self.loss.label_dropout == 0:
            return labels
        dropped = rng.uniform(self.seed, rng.LABEL_DROP, batch_number, ids) <= self.loss.label_dropout
        return labels.masked_fill(dropped, -1)


def dropout_seed(seed: int, batch_number: int, rank: int) -> int:
    """Of torch's generator for one step on one rank."""
    key = rng.random_bits(seed, rng.DROPOUT, batch_number, torch.tensor([rank]), 2)[0]
    return int(key[0]) << 31 | int(key[1]) >> 1
