"""The loader of a run, and its worker processes."""

import dataclasses
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from composer.utils import dist
from streaming import StreamingDataLoader

from recipe.configuration.inputs import Data
from recipe.configuration.schema import Config
from recipe.data.caches import RemoteData
from recipe.data.checks import TrainingData
from recipe.data.dataset import ImageDataset
from recipe.data.facts import DataError
from recipe.data.index import sources
from recipe.data.shared_memory import clear_stale
from recipe.data.streams import KeptStream, has_hashes

log = logging.getLogger(__name__)
DOWNLOAD_RETRIES = 8  # of a shard, each with the retries of its storage's own client
LONGEST_TEMPORARY_FOLDER = 107 - len("/pymp-12345678/listener-12345678")  # bytes; 107 = the longest name of a socket
LOOKS_FOR_RANK = 2.0  # seconds between a worker's looks whether its rank is still there
PATIENCE = 60.0  # seconds without a batch after which that is said


def training_loader(config: Config, data: TrainingData, device_batch_size: int) -> "PatientLoader":
    """The loader of a run. The order of the samples depends on the seed and `num_canonical_nodes`, not on the ranks.

    Args:
        config: resolved, and this rank's own, whose folders may be named by this machine's environment.
        data: what rank 0 found out.

    Raises:
        DataError: on every rank, if a machine's folder cannot hold the shards.
    """
    remote = own_folders(config.data, data.remote)
    resolution, channels, label_dim = config.model.shape()
    _on_each_machine(lambda: [_make_ready(each) for each in remote])
    try:
        dataset = ImageDataset(
            img_resolution=resolution,
            img_channels=channels,
            label_dim=label_dim,
            # Only the first rank of each node arranges the epoch.
            labels=data.labels if dist.get_local_rank() == 0 else None,
            streams=streams(config.data, remote),
            shuffle=config.data.shuffle,
            shuffle_seed=config.seed,
            num_canonical_nodes=config.data.num_canonical_nodes,
            cache_limit=config.data.cache_limit,
            batch_size=device_batch_size,
            download_retry=DOWNLOAD_RETRIES,
        )
    except ValueError as error:
        if "Reused local directory" not in str(error):  # streaming's words
            raise
        raise DataError(
            f"{remote[0].source.key}.local {remote[0].source.local}: is the cache of a run that is going on here; give "
            "each run a folder of its own, or wait for the end of that one"
        ) from None
    _on_each_machine(lambda: [each.check_again() for each in remote])
    return PatientLoader(
        dataset,
        batch_size=device_batch_size,
        num_workers=config.data.num_workers,
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
        worker_init_fn=end_only_with_rank,
    )


def check_sockets(data: Data) -> None:
    """Raises DataError if the loader's workers could not hand over batches: by a socket below the temporary folder.

    Python's multiprocessing names it pymp-XXXXXXXX/listener-XXXXXXXX there, and a name that is too long is an error in
    a thread of the worker, after which both sides would wait for ever.
    """
    folder = tempfile.gettempdir()
    length = len(os.fsencode(folder))
    if data.num_workers > 0 and length > LONGEST_TEMPORARY_FOLDER:
        raise DataError(
            f"TMPDIR {folder}: has {length} bytes, but with data.num_workers {data.num_workers} may have at most "
            f"{LONGEST_TEMPORARY_FOLDER}, as names of sockets are short; set a shorter TMPDIR, or data.num_workers=0"
        )


def own_folders(data: Data, found: Sequence[RemoteData]) -> list[RemoteData]:
    """What rank 0 found of the remote data sets, with the folders that this machine keeps them in."""
    own = [source for source in sources(data) if source.remote is not None]
    return [dataclasses.replace(each, source=source) for each, source in zip(found, own, strict=True)]


def _make_ready(remote: RemoteData) -> None:
    clear_stale(remote.source.local)  # a killed run leaves its claim on the folder
    remote.check()
    remote.take()


def _on_each_machine(work: Callable[[], object]) -> None:
    """Work on one rank of each machine, while the others wait. Raises DataError on all if it failed on one."""
    problem = None
    if dist.get_local_rank() == 0:
        try:
            work()
        except (DataError, OSError) as error:
            problem = str(error)
    for found in dist.all_gather_object(problem):
        if found is not None:
            raise DataError(found)


def streams(data: Data, remote: Sequence[RemoteData]) -> list[KeptStream]:
    """The data sets as streaming reads them."""
    fetched = {each.source.key: each for each in remote}
    return [
        KeptStream(
            source,
            ours=source.key in fetched and fetched[source.key].is_ours(),
            verify=source.key in fetched and has_hashes(fetched[source.key].shards),
            proportion=None if data.streams is None else source.proportion,
        )
        for source in sources(data)
    ]


class PatientLoader(StreamingDataLoader):
    """A loader that says so when a batch does not come, and for how long a rank has waited for it."""

    waiting_since: float | None = None

    def __iter__(self) -> Iterator[Any]:
        batches = super().__iter__()
        while True:
            self.waiting_since = time.monotonic()
            warning = threading.Timer(PATIENCE, self._warn)
            warning.daemon = True
            warning.start()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                warning.cancel()
                self.waiting_since = None
            yield batch

    def waited(self) -> float:
        """Seconds for which the rank has been waiting for its next batch by now."""
        since = self.waiting_since
        return 0.0 if since is None else time.monotonic() - since

    def _warn(self) -> None:
        log.warning(
            "no batch has come from the data for %.0f s; still waiting: look at the network and the disk of the data, "
            "and at the processors of this machine",
            PATIENCE,
        )


def end_only_with_rank(worker: int) -> None:
    """Let a loader's worker obey SIGTERM from its rank alone, and end when the rank has ended.

    Slurm and terminals signal all processes of a job, but a rank that is to stop still needs its worker to finish
    the batch and save. torch's worker sees only between batches that its rank is gone: never, if none comes.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_rank, args=[os.getppid()], daemon=True, name="signals").start()


def _wait_for_rank(rank: int) -> None:
    while os.getppid() == rank:
        received = signal.sigtimedwait({signal.SIGTERM}, LOOKS_FOR_RANK)
        if received is not None and received.si_pid == rank:
            break
    os._exit(0)
