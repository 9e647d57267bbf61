"""Sharded images: the streaming data set, its loader, and the checks before a run reads them."""

import io
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer.utils import dist
from numpy.typing import NDArray
from PIL import Image
from streaming import Stream, StreamingDataLoader, StreamingDataset
from streaming.base.spanner import Spanner

from recipe.training.sampling import balanced_draws, occurrences
from recipe.training.shards import check_shards, read_index, read_labels, read_remote, read_statistics, sources
from recipe.training.shared_memory import clear_stale
from recipe.training.statistics import (
    DataError,
    check_kind,
    check_statistics,
    combine,
    kind_of,
    warn_of_sigma_data,
    with_kind,
)

DOWNLOAD_RETRIES = 8  # of a shard, each with the retries of its storage's own client


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


def check_data(config: Any) -> tuple[int, dict[str, Any]]:
    """Everything that can be known about the data before streaming it: (number of samples, statistics).

    The statistics are those of stats.json, with `kind` ("pixels" or "latents") and, of latents, `whitening`; of several
    streams as `combine` says.

    Raises:
        DataError: as the functions above and in `statistics`, or less data than one batch.
    """
    found, samples, places = [], 0, sources(config.data)
    for source in places:
        if source.remote is not None:
            shards, statistics = read_remote(source)
        else:
            check_shards(source.local, f"{source.key}.local")
            shards, statistics = read_index(Path(source.local)), read_statistics(source.local)
        check_statistics(statistics, config, str(source))
        statistics = with_kind(statistics, kind_of(shards, str(source)), str(source))
        check_kind(config, statistics, str(source))
        found.append(statistics)
        samples += sum(shard["samples"] for shard in shards)
    if samples < config.global_batch_size:
        raise DataError(
            f"{places[0]}: {samples} images are fewer than global_batch_size {config.global_batch_size}; use a smaller "
            "batch or more data"
        )
    if config.data.class_balanced:
        read_labels(places[0])
    statistics = found[0]
    if config.data.streams is not None:
        statistics = combine(found, [source.proportion for source in places], [str(source) for source in places])
    warn_of_sigma_data(config, statistics)
    return samples, statistics


def training_loader(config: Any, device_batch_size: int) -> StreamingDataLoader:
    """The loader of a run. The order of the samples depends on the seed and `num_canonical_nodes`, not on the ranks."""
    data, places = config.data, sources(config.data)
    remote = [source for source in places if source.remote is not None]
    if remote:
        if dist.get_local_rank() == 0:  # a killed run leaves its claims on the cache folders
            for source in remote:
                clear_stale(source.local)
        dist.barrier()
    if data.streams is None:
        where: dict[str, Any] = {"remote": data.remote, "local": data.local}
    else:
        where = {"streams": [Stream(remote=s.remote, local=s.local, proportion=s.proportion) for s in places]}
    # Only the first rank of each node arranges the epoch.
    labels = read_labels(places[0]) if data.class_balanced and dist.get_local_rank() == 0 else None
    dataset = ImageDataset(
        img_resolution=config.model.img_resolution,
        img_channels=config.model.img_channels,
        label_dim=config.model.label_dim,
        labels=labels,
        **where,
        shuffle=data.shuffle,
        shuffle_seed=config.seed,
        num_canonical_nodes=data.num_canonical_nodes,
        cache_limit=data.cache_limit,
        batch_size=device_batch_size,
        download_retry=DOWNLOAD_RETRIES,
    )
    return StreamingDataLoader(
        dataset,
        batch_size=device_batch_size,
        num_workers=data.num_workers,
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
        worker_init_fn=end_only_with_rank,
    )


def end_only_with_rank(worker: int) -> None:
    """Let a loader's worker obey SIGTERM from its rank alone.

    Slurm and terminals signal all processes of a job, but a rank that was told to stop still needs its worker to finish
    the batch and save.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_rank, daemon=True, name="signals").start()


def _wait_for_rank() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
