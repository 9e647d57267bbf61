"""FID and other metrics of what the averages draw, during training.

Images of seeds from 0 on, the same at each time and on any number of ranks, drawn as those of the grids. Nothing that
training draws at random is touched.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from composer.core import State
from composer.devices import Device
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from recipe.configuration.outputs import Metrics, Samples
from recipe.configuration.schema import Config
from recipe.data.facts import DataFacts
from recipe.edm2.networks.precond import Precond
from recipe.edm2.samplers.generate import SamplerSettings, generate_batches
from recipe.evaluation.feature_set import EvaluationError
from recipe.evaluation.features import find_network
from recipe.evaluation.judging import Judge
from recipe.evaluation.measuring import Tally
from recipe.evaluation.metrics import check_enough
from recipe.evaluation.network_weights import WeightsChoice
from recipe.evaluation.reference import About
from recipe.evaluation.statistics_files import open_reference
from recipe.progress import progress
from recipe.ranks import Ranks
from recipe.training.callbacks import AtIntervals, device_of_rank, grid_pictures
from recipe.training.model import unwrap


class GroupRanks(Ranks):
    """The ranks of a run, which talk through their process group; each holds what all give for a moment."""

    def collect(self, data: bytes) -> Iterator[bytes]:
        parts: Sequence[Any] = dist.all_gather_object(data)
        return iter(parts if self.first else ())

    def announce(self, word: str) -> str:
        words = [word]
        dist.broadcast_object_list(words, src=0)
        return words[0]


class AverageMetrics(AtIntervals):
    """Measures each average at intervals and at the end, and logs `metrics/ema-SIGMA_REL/NAME`.

    Args:
        interval: images between measurements.
        judge: measures.
        sigma_rels: lengths of the averages that are measured; None = all.
        num_images: images of each.
        settings: of the sampler.
        batch_size: images that each rank draws at once.
        pictures: makes uint8 pictures of what the network makes.
    """

    def __init__(
        self,
        interval: int,
        judge: Judge,
        sigma_rels: Sequence[float] | None,
        num_images: int,
        settings: SamplerSettings,
        batch_size: int,
        pictures: Callable[[Tensor], Tensor],
    ):
        super().__init__(interval)
        self.judge = judge
        self.sigma_rels = sigma_rels
        self.num_images = num_images
        self.settings = settings
        self.batch_size = batch_size
        self.pictures = pictures

    def act(self, state: State, logger: Logger, nimg: int) -> None:
        started = time.monotonic()
        for sigma_rel, ema in unwrap(state.model).averages():
            if self.sigma_rels is None or sigma_rel in self.sigma_rels:
                values = self.measure(ema)
                logger.log_metrics({f"metrics/ema-{sigma_rel:.3f}/{name}": value for name, value in values.items()})
        logger.log_metrics({"time/metrics_seconds": time.monotonic() - started})

    def measure(self, net: Precond) -> dict[str, float]:
        """The metrics of what a network draws. All ranks draw equally often, as a sharded network wants it."""
        ranks, tally = GroupRanks(dist.get_global_rank(), dist.get_world_size()), self.judge.tally()
        step = self.batch_size * ranks.size
        with progress(self.num_images, "metrics", "image", shown=ranks.first, leave=False) as bar:
            for start in range(0, self.num_images, step):
                self._draw(net, start + ranks.rank * self.batch_size, tally)
                bar.update(min(step, self.num_images - start))
        if isinstance(net, FSDPModule):
            net.reshard()  # as after a grid
        return dict(self.judge.values(tally.finish(ranks), ranks))

    def _draw(self, net: Precond, first: int, tally: Tally) -> None:
        """Count one batch of pictures, of the seeds from `first` on; those past the last are drawn in vain."""
        seeds = list(range(first, first + self.batch_size))
        labels = [seed % net.label_dim if net.label_dim > 0 else -1 for seed in seeds]
        (images,) = generate_batches(net, seeds, labels, self.settings, self.batch_size)
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
            for seed, picture in zip(seeds, self.pictures(images), strict=True):
                if seed < self.num_images and (call := tally.put(seed, picture)):
                    tally.work(call)


def average_metrics(config: Config, facts: DataFacts, interval: int, device: Device) -> AverageMetrics:
    """The callback that `config.metrics` asks for; loads the feature network on every rank.

    Raises:
        EvaluationError, StorageError, VaeError: the reference, the network or the autoencoder cannot be used.
    """
    metrics, samples = config.metrics, config.samples
    assert metrics is not None
    choice = WeightsChoice(None if metrics.weights is None else Path(metrics.weights), metrics.accept_weights)
    tf32 = torch.backends.cudnn.allow_tf32  # the run's own choice, which loading a feature network changes
    with torch.random.fork_rng(devices=[]):  # it is filled with random numbers first
        features = find_network(metrics.features, device_of_rank(device), choice)
    torch.backends.cudnn.allow_tf32 = tf32
    judge = Judge(open_reference(metrics.reference, metrics.features), features, metrics.names)
    return AverageMetrics(
        interval,
        judge,
        metrics.sigma_rels,
        metrics.num_images,
        samples.settings(),
        samples.batch_size,
        grid_pictures(samples, facts, device, everywhere=True),
    )


def check_metrics(metrics: Metrics, samples: Samples, resolution: int) -> None:
    """What can be said against `config.metrics` before the run begins.

    Args:
        metrics, samples: the sections.
        resolution: of the network's images.

    Raises:
        EvaluationError, StorageError: no such reference, one of other features or pictures, too few images.
    """
    reference = open_reference(metrics.reference, metrics.features)
    reference.check_metrics(metrics.names)
    drawn = None if samples.vae is not None else resolution
    reference.check_pictures(About(metrics.features, resolution=drawn), "what the run draws")
    check_enough(metrics.names, metrics.num_images, "metrics.num_images asks for")
    if "is" in metrics.names and metrics.features != "inception":
        raise EvaluationError(f"metrics.names {metrics.names}: is needs metrics.features inception")
