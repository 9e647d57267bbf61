"""The loader of a run, and its worker processes."""

import os
import signal
import threading
from typing import Any

import torch
from composer.utils import dist
from streaming import Stream, StreamingDataLoader

from recipe.configuration.schema import Config, Data
from recipe.data.checks import TrainingData
from recipe.data.dataset import ImageDataset
from recipe.data.index import sources
from recipe.data.shared_memory import clear_stale

DOWNLOAD_RETRIES = 8  # of a shard, each with the retries of its storage's own client


def training_loader(config: Config, data: TrainingData, device_batch_size: int) -> StreamingDataLoader:
    """The loader of a run. The order of the samples depends on the seed and `num_canonical_nodes`, not on the ranks.

    Args:
        config: resolved, and this rank's own, whose folders may be named by this machine's environment.
        data: what rank 0 found out.
    """
    remote = [source for source in sources(config.data) if source.remote is not None]
    if remote:
        if dist.get_local_rank() == 0:  # a killed run leaves its claims on the cache folders
            for source in remote:
                clear_stale(source.local)
        dist.barrier()
    resolution, channels, label_dim = config.model.shape()
    dataset = ImageDataset(
        img_resolution=resolution,
        img_channels=channels,
        label_dim=label_dim,
        # Only the first rank of each node arranges the epoch.
        labels=data.labels if dist.get_local_rank() == 0 else None,
        **where(config.data),
        shuffle=config.data.shuffle,
        shuffle_seed=config.seed,
        num_canonical_nodes=config.data.num_canonical_nodes,
        cache_limit=config.data.cache_limit,
        batch_size=device_batch_size,
        download_retry=DOWNLOAD_RETRIES,
    )
    return StreamingDataLoader(
        dataset,
        batch_size=device_batch_size,
        num_workers=config.data.num_workers,
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
        worker_init_fn=end_only_with_rank,
    )


def where(data: Data) -> dict[str, Any]:
    """Arguments of StreamingDataset that name the shards."""
    if data.streams is None:
        return {"remote": data.remote, "local": data.local}
    return {"streams": [Stream(remote=s.remote, local=s.local, proportion=s.proportion) for s in sources(data)]}


def end_only_with_rank(worker: int) -> None:
    """Let a loader's worker obey SIGTERM from its rank alone.

    Slurm and terminals signal all processes of a job, but a rank that is to stop still needs its worker to finish
    the batch and save.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_rank, daemon=True, name="signals").start()


def _wait_for_rank() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
