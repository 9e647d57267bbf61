"""Labelled images from shards: the streaming data set, which checks every sample that it decodes."""

import io
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from streaming import StreamingDataset
from streaming.base.constant import TICK
from streaming.base.dataset import _Iterator, _ShardState
from streaming.base.spanner import Spanner
from streaming.base.util import bytes_to_int

from recipe.data.epochs import balanced_draws, occurrences
from recipe.data.facts import DataError
from recipe.data.index import Source
from recipe.data.streams import KeptStream


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
        cache_limit: bytes, or text such as 200gb, that the shards of streams which are this recipe's own caches may
            take; None = no limit. Shards of other streams do not count, and are never deleted.
        kwargs: arguments of `StreamingDataset`: `streams`, or `local` and perhaps `remote` of the only one.
    """

    def __init__(
        self,
        *,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        labels: NDArray[np.int64] | None = None,
        cache_limit: int | str | None = None,
        **kwargs: Any,
    ):
        if "streams" not in kwargs:
            source = Source("data", kwargs.pop("local"), kwargs.pop("remote", None))
            kwargs["streams"] = [KeptStream(source, ours=False)]
        super().__init__(**kwargs)
        # Not given to streaming, which counts all streams, also those of which nothing may be deleted.
        self.cache_limit = None if cache_limit is None else bytes_to_int(cache_limit)
        own = [stream.bytes_at_first for stream in self.streams if isinstance(stream, KeptStream) and stream.ours]
        if self._unique_rank_world.is_local_leader:
            self.cache_usage = sum(own)
        self._failure: str | None = None
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

    def _evict_coldest_shard(self) -> None:
        """Delete the shard of this recipe's caches that was read longest ago; the caller holds the cache's lock."""
        ours = np.array([isinstance(stream, KeptStream) and stream.ours for stream in self.streams])
        own = ours[self.stream_per_shard]
        there = np.flatnonzero(own & (self._shard_states.numpy() == _ShardState.LOCAL))
        if not len(there):
            raise DataError("data.cache_limit: leaves no room for the next shard; raise it")
        times = self._shard_access_times.numpy()[there]
        self._evict_shard(int(there[np.argmin(times)]))

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Fetch a shard, or wait for the process that does. Raises DataError if it cannot be had.

        streaming would keep the cache locked, and leave the shard as if it were still being fetched: whoever needs
        either would wait for ever.
        """
        try:
            super().prepare_shard(shard_id, blocking)
        except Exception as error:  # of streaming, of each kind of storage, of the disk
            self._shard_states[shard_id] = _ShardState.REMOTE
            self._cache_filelock.release(force=True)
            raise self._unfetched(shard_id, error) from None

    def _unfetched(self, shard_id: int, error: Exception) -> DataError:
        if isinstance(error, DataError):
            return error
        stream = self.streams[self.stream_per_shard[shard_id]]
        name = self.shards[shard_id].raw_data.basename  # pyright: ignore[reportAttributeAccessIssue]
        return DataError(
            f"{stream.remote or stream.local}: {name} cannot be fetched ({_one_line(error)}); "
            "check the network, the disk and the credentials, and whether the data were prepared anew or deleted"
        )

    def _prepare_thread(self, it: _Iterator) -> None:
        self._noted(it, super()._prepare_thread)

    def _ready_thread(self, it: _Iterator) -> None:
        self._noted(it, self._make_ready)

    def _noted(self, it: _Iterator, work: Callable[[_Iterator], None]) -> None:
        """Let a thread work. An error in it ends the iteration, which raises it; streaming would only print it."""
        try:
            work(it)
        except Exception as error:
            self._failure = self._failure or str(error)
            self._event.set()
            it.on_exit()

    def _make_ready(self, it: _Iterator) -> None:
        """Let those samples be shown whose shards are there.

        A shard that was deleted again meanwhile is fetched again; streaming would wait for it for ever.
        """
        while it.ready_index < it.total and not it.should_exit() and not self._event.is_set():
            assert self.predownload is not None
            if it.ready_index - it.yield_index > self.predownload:
                time.sleep(TICK)
                continue
            sample_id = it.sample_ids[it.ready_index]
            if sample_id != -1:
                shard_id, _ = self.spanner[sample_id]
                if self._shard_states[shard_id] != _ShardState.LOCAL:
                    self.prepare_shard(shard_id)
                    continue
            it.ready_index += 1
        it.on_exit()

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        yield from super().__iter__()
        if self._failure is not None:
            raise DataError(self._failure)

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, torch.Tensor]:
        if self._failure is not None:
            raise DataError(self._failure)
        try:
            sample = super().get_item(sample_id, retry)
            if "image" in sample:
                arrays = {"image": _channels_first(sample["image"])}
            else:
                arrays = {name: np.array(sample[name]) for name in ("mean", "std")}
            label = int(sample["label"])
        except DataError:
            raise
        except RuntimeError as error:  # streaming's, if the shard was deleted before each look at it
            raise DataError(
                f"{self._where(sample_id)} cannot be read ({_one_line(error)}); raise data.cache_limit if it is set, "
                " or copy the shards again"
            ) from None
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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or repr(error)


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
