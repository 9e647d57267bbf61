"""What a sweep does at a point: draws pictures by the point's network, guided as it says, and judges them."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from recipe.edm2.samplers.generate import SamplerSettings
from recipe.evaluation.averages import Averages
from recipe.evaluation.judging import Judge, judge_network
from recipe.evaluation.metrics import chosen
from recipe.evaluation.points import Point
from recipe.evaluation.sweep import Values
from recipe.ranks import Ranks
from recipe.sampling.distributed import Drawer, Wanted, rows_of
from recipe.sampling.networks import Sampled
from recipe.sampling.settings import pictures_digest


@dataclass(frozen=True)
class GuideRun:
    """A run whose averages of several lengths guide; `nimg` is their time."""

    averages: Averages
    nimg: int


Guide = Sampled | GuideRun | None
"""The network of a snapshot, or a run's; None = the guided network itself, without labels."""


@dataclass(frozen=True)
class PointMeasure:
    """Measures points; called with the same ones on all ranks.

    Attributes:
        judge: measures pictures.
        averages: of the run.
        guide: what guides.
        settings: of the sampler, of which a point changes guidance and interval.
        wanted: the images to draw at each point, the same ones.
        pictures: makes pictures of what a network makes.
        ranks: of the launch.
        batch_size: images in memory at once on each rank.
        likely: lengths that a search may come to.
    """

    judge: Judge
    averages: Averages
    guide: Guide
    settings: SamplerSettings
    wanted: Sequence[Wanted]
    pictures: Callable[[Tensor], Tensor]
    ranks: Ranks
    batch_size: int
    likely: Sequence[float] = ()

    def expect(self, points: Sequence[Point]) -> None:
        """Learn which points come, in order, so that one pass over snapshots makes several averages."""
        self.averages.expect([(point.nimg, point.sigma_rel) for point in points], self.likely)
        if isinstance(self.guide, GuideRun):
            lengths = [point.guide_sigma_rel for point in points if point.guide_sigma_rel is not None]
            self.guide.averages.expect([(self.guide.nimg, length) for length in lengths])

    def __call__(self, point: Point) -> Values:
        """The values of a point. Raises SnapshotError, StorageError, EvaluationError."""
        net = self.averages.network(point.nimg, point.sigma_rel).net
        settings = dataclasses.replace(self.settings, guidance=point.guidance, interval=point.interval)
        guide = self._guide(point)
        drawer = Drawer(net, settings, None if guide is None else guide.net, self.pictures)
        return judge_network(self.judge, drawer, self.wanted, self.ranks, self.batch_size)

    def _guide(self, point: Point) -> Sampled | None:
        if not isinstance(self.guide, GuideRun):
            return self.guide
        if point.guide_sigma_rel is None:  # without guidance
            return None
        return self.guide.averages.network(self.guide.nimg, point.guide_sigma_rel)

    def measured_with(self, labels: str, vae: str | None) -> Mapping[str, str]:
        """All that values depend on beside the point, by name; what differs in any of it must not be mixed.

        Args:
            labels: which classes are drawn, as the user has it.
            vae: digest of the decoder's weights; None = none.
        """
        guide, guide_nimg = self.guide, "none"
        if isinstance(guide, GuideRun):
            guide, guide_nimg = guide.averages.outline, str(guide.nimg)
        statistics = hashlib.sha256()
        for tensor in (self.judge.reference.found.mean, self.judge.reference.found.covariance):
            statistics.update(tensor.contiguous().numpy().tobytes())
        device = self.averages.device
        found: dict[str, object] = {
            "run": self.averages.identity,
            "metric": chosen(self.judge.metrics)[0].values[0],
            "metrics": ",".join(self.judge.metrics),
            "reference": statistics.hexdigest()[:16],
            "features": f"{self.judge.features.name} {self.judge.features.digest[:16]}",
            "images": len(self.wanted),
            "labels": labels,
            "pictures": pictures_digest(self.wanted),
            "guide": "none" if guide is None else guide.identity,
            "guide_nimg": guide_nimg,
            "vae": vae or "none",
        }
        found |= dataclasses.asdict(self.settings)
        found |= {
            "dtype": str(self.averages.dtype).removeprefix("torch."),
            "device": device.type,
            "rows": rows_of(device),
        }
        return {name: str(value) for name, value in found.items() if name not in ("guidance", "interval")}
