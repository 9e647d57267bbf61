"""What a run writes beside its checkpoints: EMA snapshots and grids of samples."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from composer.core import Callback, State
from composer.devices import Device
from composer.loggers import Logger
from composer.utils import dist
from PIL import Image
from torch.distributed.fsdp import FSDPModule

from recipe.configuration.schema import Samples
from recipe.data.autoencoder import find_vae
from recipe.data.facts import DataFacts
from recipe.edm2.images import image_grid, to_pixels
from recipe.edm2.networks.precond import Precond
from recipe.edm2.samplers.generate import SamplerSettings, generate_batches
from recipe.edm2.sharded_tensors import gather
from recipe.sampling.networks import LatentPictures
from recipe.training.finite import check_finite
from recipe.training.folder import RunFolder
from recipe.training.model import unwrap
from recipe.weights.snapshots import SnapshotInfo, save_snapshot, snapshot_name


class AtIntervals(Callback):
    """Calls `act` after the batches that pass a multiple of `interval` images, and after the last one; None = never.

    All of it happens before the batch's checkpoint is written, so that a run killed at any moment and resumed from its
    latest checkpoint lacks nothing.
    """

    def __init__(self, interval: int | None):
        self.interval = interval

    def act(self, state: State, logger: Logger, nimg: int) -> None:
        raise NotImplementedError

    def batch_end(self, state: State, logger: Logger) -> None:
        if self.interval is None:
            return
        assert state.previous_timestamp is not None
        assert state.max_duration is not None
        nimg, before = state.timestamp.sample.value, state.previous_timestamp.sample.value
        if nimg // self.interval > before // self.interval or state.timestamp >= state.max_duration:
            self.act(state, logger, nimg)


class EMASnapshots(AtIntervals):
    """Stores each average at intervals and at the end (Section 3.2); training waits only for the copy to the CPU.

    Args:
        folder: of the run.
        interval: images between snapshots.
        network: arguments of `Precond` that rebuild the network.
        dtype: precision of the stored averages; float16 is enough, bfloat16 is not (post-hoc sums amplify rounding).
        facts: of the data, stored along.
        keep: how many of the newest snapshots of each average stay; -1 = all.
        label_dropout: share of examples that were shown without their class, stored along: sampling wants to know.
        run: names the run in each snapshot.
    """

    def __init__(
        self,
        folder: RunFolder,
        interval: int,
        network: dict[str, Any],
        dtype: torch.dtype,
        facts: DataFacts,
        keep: int = -1,
        label_dropout: float = 0.0,
        run: str | None = None,
    ):
        assert keep == -1 or keep >= 1, keep  # 0 would delete every average as soon as it is stored
        super().__init__(interval)
        self.folder = folder
        self.network = network
        self.dtype = dtype
        self.facts = facts
        self.notes = {"label_dropout": label_dropout}
        self.keep = keep
        self.run = run

    def act(self, state: State, logger: Logger, nimg: int) -> None:
        started = time.monotonic()
        check_finite(state, self.folder)
        for sigma_rel, ema in unwrap(state.model).averages():
            tensors = snapshot_tensors(ema, self.dtype)
            if dist.get_global_rank() == 0:
                info = SnapshotInfo(self.network, nimg, sigma_rel, self.facts, self.notes, run=self.run)
                self.folder.uploads.submit(functools.partial(self._store, tensors, info))
        logger.log_metrics({"time/snapshot_seconds": time.monotonic() - started})

    def _store(self, tensors: dict[str, torch.Tensor], info: SnapshotInfo) -> None:
        name = f"snapshots/{snapshot_name(info.nimg, info.sigma_rel)}"
        save_snapshot(self.folder.local / name, tensors, info)
        self.folder.store(name)
        if self.keep > 0:
            place = self.folder.place.child("snapshots")
            ours = [entry.name for entry in place.list() if entry.name.endswith(Path(name).name.rpartition("-")[2])]
            place.delete(ours[: -self.keep])


@torch.no_grad()
def snapshot_tensors(net: Precond, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The network's state on the CPU as a snapshot stores it: averages in `dtype`, buffers as they are.

    Call it on all ranks: a sharded network is gathered, one parameter at a time. Only rank 0 gets the result.
    """
    rank, tensors = dist.get_global_rank(), {}
    for name, parameter in net.named_parameters():
        whole = gather(parameter.detach().to(dtype))
        if rank == 0:
            tensors[name] = whole.to("cpu", copy=True)
    if rank == 0:
        tensors |= {name: buffer.to("cpu", copy=True) for name, buffer in net.named_buffers()}
    return tensors


class SampleGrid(AtIntervals):
    """Draws the same seeds by the raw weights and by each average, logs the grids as images and writes them as PNG.

    Args:
        folder: of the run.
        interval: images between grids; None = never.
        count: images in a grid; image i has seed i and class i mod label_dim.
        settings: of the sampler.
        batch_size: images drawn at once.
        pictures: makes uint8 pictures of what the network makes.
    """

    def __init__(
        self,
        folder: RunFolder,
        interval: int | None,
        count: int,
        settings: SamplerSettings,
        batch_size: int,
        pictures: Callable[[torch.Tensor], torch.Tensor] = to_pixels,
    ):
        super().__init__(interval)
        self.folder = folder
        self.count = count
        self.settings = settings
        self.batch_size = batch_size
        self.pictures = pictures

    def act(self, state: State, logger: Logger, nimg: int) -> None:
        model = unwrap(state.model)
        started = time.monotonic()
        model.net.eval()
        networks = {"raw": model.net} | {f"ema-{sigma_rel:.3f}": ema for sigma_rel, ema in model.averages()}
        for name, net in networks.items():
            images = self.draw(net)  # on every rank: sharded networks need all of them
            if dist.get_global_rank() == 0:
                grid = image_grid(self.pictures(images), columns=10)
                path = self.folder.local / "samples" / f"{nimg:011d}-{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(grid.squeeze(2).numpy()).save(path)
                self.folder.keep(f"samples/{path.name}")
                # no table: an offline W&B run would ask its server, again and again, whether it takes them
                step = state.timestamp.batch.value
                logger.log_images(grid.numpy(), f"samples/{name}", channels_last=True, step=step, use_table=False)
        model.net.train()
        logger.log_metrics({"time/sample_grid_seconds": time.monotonic() - started})

    def draw(self, net: Precond) -> torch.Tensor:
        """Images [N, C, H, W] as the network makes them."""
        seeds = list(range(self.count))
        labels = [seed % net.label_dim if net.label_dim > 0 else -1 for seed in seeds]
        batches = generate_batches(net, seeds, labels, self.settings, self.batch_size)
        images = torch.cat(list(batches))
        if isinstance(net, FSDPModule):
            net.reshard()  # its root unit stays gathered until a backward pass that never comes
        return images


def device_of_rank(device: Device) -> torch.device:
    """Where this rank computes."""
    return torch.device("cuda", torch.cuda.current_device()) if device.name == "gpu" else torch.device("cpu")


def grid_pictures(
    samples: Samples, facts: DataFacts, device: Device, everywhere: bool = False
) -> Callable[[torch.Tensor], torch.Tensor]:
    """What makes the pictures of sample grids. Who needs it loads the autoencoder of latents now.

    Args:
        everywhere: all ranks need it, and whether or not there are grids; else rank 0 alone, which writes them.

    Raises:
        VaeError: it cannot be loaded.
    """
    whitening = facts.latent_whitening
    needed = everywhere or (samples.interval is not None and dist.get_global_rank() == 0)
    if samples.vae is None or whitening is None or not needed:
        return to_pixels
    files, idle = find_vae(samples.vae, "samples.vae"), torch.device("cpu")  # between grids the GPU is the training's
    return LatentPictures(files, whitening, device_of_rank(device), idle)
