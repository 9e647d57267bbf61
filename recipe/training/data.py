"""Sharded images: the streaming data set, its loader, and the checks before a run reads them."""

import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from streaming import StreamingDataLoader, StreamingDataset
from streaming.base.storage import CloudDownloader
from streaming.base.util import clean_stale_shared_memory

from recipe.storage.places import MissingError, open_place

INDEX = "index.json"
STATISTICS = "stats.json"
DOWNLOAD_RETRIES = 8  # of a shard, each with the retries of its storage's own client


class DataError(ValueError):
    """Shards that are missing, damaged or at odds with the configuration; the message names the file or key."""

    def __str__(self) -> str:
        # A loader's worker process hands its errors over with its traceback around the message.
        return super().__str__().strip().rsplit("DataError: ", 1)[-1]


class ImageDataset(StreamingDataset):
    """Labelled images from MDS shards with the columns `image` (png, bytes of a WebP file, or a uint8 array [C, H, W])
    and `label` (int).

    A sample is a dict: `image` uint8 [C, H, W], `label` int64 [] (-1 if `label_dim` is 0), `id` int64 [], its number in
    the data set, which keys everything random about it.

    Args:
        img_resolution, img_channels, label_dim: what the network expects; every sample is checked against it.
        kwargs: arguments of `StreamingDataset`.
    """

    def __init__(self, *, img_resolution: int, img_channels: int, label_dim: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.image_shape = (img_channels, img_resolution, img_resolution)
        self.label_dim = label_dim

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, torch.Tensor]:
        try:
            sample = super().get_item(sample_id, retry)
            image, label = _channels_first(sample["image"]), int(sample["label"])
        except (KeyError, OSError, ValueError) as error:
            raise DataError(
                f"{self._where(sample_id)} cannot be read ({error!r}); prepare or copy the shards again"
            ) from None
        if image.shape != self.image_shape:
            raise DataError(
                f"{self._where(sample_id)} has an image of shape {list(image.shape)} (channels, height, width), but "
                f"model.img_channels and model.img_resolution ask for {list(self.image_shape)}; change these keys or "
                "prepare the data with another --resolution"
            )
        if self.label_dim == 0:
            label = -1
        elif not -1 <= label < self.label_dim:
            raise DataError(
                f"{self._where(sample_id)} has label {label}, but model.label_dim {self.label_dim} allows 0 to "
                f"{self.label_dim - 1}, and -1 for none; set model.label_dim to the number of classes"
            )
        return {"image": torch.from_numpy(image), "label": torch.tensor(label), "id": torch.tensor(int(sample_id))}

    def _where(self, sample_id: int) -> str:
        shard_id, index = self.spanner[int(sample_id)]
        shard = self.shards[shard_id]
        return f"{shard.dirname}/{shard.raw_data.basename}, sample {index}"  # pyright: ignore[reportAttributeAccessIssue]


def _channels_first(image: Any) -> np.ndarray:
    """A uint8 array [C, H, W] from what a shard holds; bytes are a WebP file."""
    if isinstance(image, bytes):
        image = Image.open(io.BytesIO(image), formats=["WEBP"])
    if isinstance(image, Image.Image):
        array = np.array(image)  # a copy: Pillow's own buffer is read-only
        return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))
    return np.array(image)


def read_index(folder: Path) -> list[dict[str, Any]]:
    """The shards that the index in `folder` lists. Raises DataError if it cannot be read or lists no samples."""
    try:
        shards = json.loads((folder / INDEX).read_text())["shards"]
        samples = sum(shard["samples"] for shard in shards)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / INDEX}: is not an MDS index ({error!r}); prepare the data again") from None
    if samples == 0:
        raise DataError(f"{folder / INDEX}: lists no samples; prepare the data again")
    return shards


def check_shards(folder: str) -> int:
    """Check that `folder` holds a complete set of MDS shards and return the number of samples.

    Raises:
        DataError: a missing folder, index or shard, an unreadable index, or a shard of another size than it says.
    """
    path = Path(folder)
    if not (path / INDEX).is_file():
        raise DataError(
            f"data.local {folder}: holds no {INDEX}; make the shards with recipe/prepare.py or name their folder"
        )
    shards = read_index(path)
    for shard in shards:
        entries = [shard[kind] for kind in ("raw_data", "zip_data") if shard.get(kind)]
        found = [entry for entry in entries if (path / entry["basename"]).is_file()]
        if not found:
            raise DataError(f"{path / entries[0]['basename']}: the shard is missing; prepare or copy the data again")
        for entry in found:
            size = (path / entry["basename"]).stat().st_size
            if size != entry["bytes"]:
                raise DataError(
                    f"{path / entry['basename']}: the shard has {size} bytes, but {INDEX} says {entry['bytes']}; it "
                    "was cut short or changed: prepare or copy the data again"
                )
    return sum(shard["samples"] for shard in shards)


def read_statistics(folder: str) -> dict[str, Any]:
    """What `prepare.py` noted of the data, or {} if there is no such note."""
    path = Path(folder) / STATISTICS
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise DataError(f"{path}: is not valid JSON ({error}); prepare the data again or delete the file") from None


def read_remote(remote: str) -> tuple[int, dict[str, Any]]:
    """Number of samples and statistics of shards in object storage, from two small files there.

    Raises:
        DataError: no index there, or no access.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name in (INDEX, STATISTICS):
            try:
                _download(remote, name, Path(folder))
            except (FileNotFoundError, MissingError) as error:
                if name == INDEX:
                    raise DataError(
                        f"data.remote {remote}: holds no {INDEX} ({error}); make the shards with recipe/prepare.py and "
                        "copy them there, or mend the address"
                    ) from None
            except Exception as error:  # each kind of storage has errors of its own
                raise DataError(
                    f"data.remote {remote}: {name} cannot be read ({error}); check the address, the network and the "
                    "credentials in the environment"
                ) from None
        return sum(shard["samples"] for shard in read_index(Path(folder))), read_statistics(folder)


def _download(remote: str, name: str, folder: Path) -> None:
    if remote.startswith("s3://"):
        (folder / name).write_bytes(open_place(remote).read(name))
    else:
        CloudDownloader.get(remote).direct_download(f"{remote}/{name}", str(folder / name))


def check_statistics(statistics: dict[str, Any], config: Any, place: str) -> None:
    """Compare the note of the data at `place` with the configuration. Raises DataError that names differing keys."""
    differing = [
        f"model.{key} is {getattr(config.model, key)}, but the data has {statistics[key]}"
        for key in ("img_resolution", "img_channels", "label_dim")
        if key in statistics
        and getattr(config.model, key) != statistics[key]
        # an unconditional network may be trained on labelled images
        and not (key == "label_dim" and config.model.label_dim == 0)
    ]
    if differing:
        raise DataError(f"{place}: " + "; ".join(differing) + "; change these keys or the data")


def check_data(config: Any) -> tuple[int, dict[str, Any]]:
    """Everything that can be known about the data before streaming it: (number of samples, statistics).

    Raises:
        DataError: as `check_shards`, `read_remote` and `check_statistics`, or less data than one batch.
    """
    if config.data.remote is not None:
        place = f"data.remote {config.data.remote}"
        samples, statistics = read_remote(config.data.remote)
    else:
        place = f"data.local {config.data.local}"
        samples, statistics = check_shards(config.data.local), read_statistics(config.data.local)
    check_statistics(statistics, config, place)
    if samples < config.global_batch_size:
        raise DataError(
            f"{place}: {samples} images are fewer than global_batch_size {config.global_batch_size}; use a smaller "
            "batch or more data"
        )
    return samples, statistics


def training_loader(config: Any, device_batch_size: int) -> StreamingDataLoader:
    """The loader of a run. The order of the samples depends on the seed and `num_canonical_nodes`, not on the ranks."""
    data = config.data
    if data.remote is not None:
        clean_stale_shared_memory()  # a killed run leaves its claim on the cache folder in /dev/shm
    dataset = ImageDataset(
        img_resolution=config.model.img_resolution,
        img_channels=config.model.img_channels,
        label_dim=config.model.label_dim,
        remote=data.remote,
        local=data.local,
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
    )
