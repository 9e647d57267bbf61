"""Labelled images from shards: the streaming data set, which checks every sample that it decodes."""

import io
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from streaming import StreamingDataset
from streaming.base.spanner import Spanner

from recipe.data.epochs import balanced_draws, occurrences
from recipe.data.facts import DataError


class ImageDataset(StreamingDataset):
    """Labelled images from MDS shards with the columns `image` (png, bytes of a WebP file, or a uint8 array [C, H, W])
    and `label` (int).

    Shards of latents have `mean` and `std` (float arrays [C, H, W]) instead of `image`. A sample is a dict: `image`
    uint8 [C, H, W], or `mean` and `std` float; `label` int64 [] (-1 if `label_dim` is 0); `id` int64 [], which keys
    everything random about it. The id is the sample's number in the data set, plus the number of samples for each time
    that the epoch has drawn it before, so that copies of a sample in one batch differ. It wraps around at 2^32.

    Args:
        img_resolution, img_channels, label_dim: what the network expects; every sample is checked against it.
        labels: class of each sample [N], to draw each class equally often; None = draw each sample as often as its
            stream asks for.
        kwargs: arguments of `StreamingDataset`.
    """

    def __init__(
        self,
        *,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        labels: NDArray[np.int64] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.image_shape = (img_channels, img_resolution, img_resolution)
        self.label_dim = label_dim
        self.labels = labels
        self.spanner: Any = _Cyclic(self.spanner, self.num_samples)

    def resample_streams(self, epoch: int, stream_id: int | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What an epoch draws: lengths of parts that lie in one shard, and the draws, numbered as ids are."""
        if self.labels is not None:
            generator = np.random.default_rng([self.shuffle_seed, epoch])
            units, ids = balanced_draws(self.labels, self.samples_per_shard, self.epoch_size, generator)
        else:
            units, ids = super().resample_streams(epoch, stream_id)
            if all(stream.repeat <= 1 for stream in self.streams):
                return units, ids
        return units, ids + self.num_samples * occurrences(ids)

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, torch.Tensor]:
        try:
            sample = super().get_item(sample_id, retry)
            if "image" in sample:
                arrays = {"image": _channels_first(sample["image"])}
            else:
                arrays = {name: np.array(sample[name]) for name in ("mean", "std")}
            label = int(sample["label"])
        except (KeyError, OSError, ValueError) as error:
            raise DataError(
                f"{self._where(sample_id)} cannot be read ({error!r}); prepare or copy the shards again"
            ) from None
        for name, array in arrays.items():
            if array.shape != self.image_shape:
                what = "an image" if name == "image" else f"a {name}"
                raise DataError(
                    f"{self._where(sample_id)} has {what} of shape {list(array.shape)} (channels, height, width), "
                    f"but model.img_channels and model.img_resolution ask for {list(self.image_shape)}; change these "
                    "keys or prepare the data with another --resolution"
                )
        if self.label_dim == 0:
            label = -1
        elif not -1 <= label < self.label_dim:
            raise DataError(
                f"{self._where(sample_id)} has label {label}, but model.label_dim {self.label_dim} allows 0 to "
                f"{self.label_dim - 1}, and -1 for none; set model.label_dim to the number of classes"
            )
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return tensors | {"label": torch.tensor(label), "id": torch.tensor(int(sample_id) % 2**32)}

    def _where(self, sample_id: int) -> str:
        shard_id, index = self.spanner[int(sample_id)]
        shard = self.shards[shard_id]
        return f"{shard.dirname}/{shard.raw_data.basename}, sample {index}"  # pyright: ignore[reportAttributeAccessIssue]


class _Cyclic:
    """A spanner that also finds a sample under the numbers of its further draws."""

    def __init__(self, spanner: Spanner, num_samples: int):
        self.spanner = spanner
        self.num_samples = num_samples

    def __getitem__(self, draw: int) -> tuple[int, int]:
        return self.spanner[draw % self.num_samples]


def _channels_first(image: Any) -> np.ndarray:
    """A uint8 array [C, H, W] from what a shard holds; bytes are a WebP file."""
    if isinstance(image, bytes):
        image = Image.open(io.BytesIO(image), formats=["WEBP"])
    if isinstance(image, Image.Image):
        array = np.array(image)  # a copy: Pillow's own buffer is read-only
        return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))
    return np.array(image)
