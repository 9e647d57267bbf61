"""One pass of pictures through a feature network, on any number of ranks and threads.

As in `sampling/distributed.py` the network always gets the same number of rows, and the picture of a number is always
in row `number % rows`, computed on the CPU by one thread: its features have the same bits whatever the batches, the
ranks and the other pictures are. Sums are in float64. What is kept is put in the order of the pictures' numbers.
"""

import threading
from collections import deque
from collections.abc import Container, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from safetensors.torch import load, save
from torch import Tensor

from recipe.evaluation.distances import FeatureStatistics, moments
from recipe.evaluation.feature_set import EvaluationError, FeatureSet
from recipe.evaluation.features import FeatureNetwork
from recipe.ranks import Ranks
from recipe.sampling.distributed import rows_of, single_threads

WAITING = 4  # calls' worth of pictures that wait for others in the rows that they leave free
EVERY: Container[int] = range(2**63)
"""All numbers that a picture can have."""
STATE = ("count", "total", "products")  # of FeatureStatistics
Numbered = tuple[Sequence[int], Tensor]
"""Pictures uint8 [N, C, H, W] and their numbers, which no others have."""


@dataclass(frozen=True)
class Keep:
    """What is kept of each picture beside sums, on the CPU and in the end on rank 0.

    Attributes:
        features: of which numbers, 4 D bytes each.
        logits: those of a classifier, 4 K bytes of each picture.
    """

    features: Container[int] = ()
    logits: bool = False


NOTHING = Keep()


class Tally:
    """What is known of the pictures that this rank has seen. Usable from several threads.

    Args:
        network: gives the features.
        keep: what is kept.
        resolution: height and width that pictures must have; None = those of the first.
    """

    def __init__(self, network: FeatureNetwork, keep: Keep = Keep(), resolution: int | None = None):
        self.network = network
        self.keep = keep
        self.rows = rows_of(network.device)
        self.waiting: list[deque[tuple[int, Tensor]]] = [deque() for _ in range(self.rows)]
        self.statistics: FeatureStatistics | None = None
        self.numbers: list[int] = []
        self.kept: dict[str, list[Tensor]] = {"features": [], "kept_numbers": [], "logits": []}
        self.size = None if resolution is None else (resolution, resolution)
        self.lock = threading.Lock()

    def add(self, number: int, picture: Tensor) -> None:
        """See one picture, uint8 [C, H, W]; the thread that completes a call computes it."""
        call = self.put(number, picture)
        if call:
            if self.network.device.type == "cpu":
                torch.set_num_threads(1)  # of this thread
            self.work(call)

    def put(self, number: int, picture: Tensor) -> dict[int, Tensor]:
        """Let a picture wait; returns a call, by number, when one is full or too many wait.

        Raises:
            EvaluationError: it has another shape than those before.
        """
        size = tuple(picture.shape[1:])
        with self.lock:
            if self.size not in (None, size):
                raise EvaluationError(
                    f"a picture of {size[1]}x{size[0]} pixels where {self.size[1]}x{self.size[0]} are wanted: features "
                    "depend on the size; bring all pictures, and the reference, to one"
                )
            self.size = size
            self.waiting[number % self.rows].append((number, picture))
            full = all(self.waiting) or sum(map(len, self.waiting)) >= WAITING * self.rows
            return self._take() if full else {}

    def _take(self) -> dict[int, Tensor]:
        return dict(row.popleft() for row in self.waiting if row)

    def rest(self) -> Iterator[dict[int, Tensor]]:
        """The calls of what still waits."""
        while call := self._take():
            yield call

    def work(self, call: dict[int, Tensor]) -> int:
        """Compute a call and add it up; returns the number of its pictures."""
        batch = torch.zeros(self.rows, *next(iter(call.values())).shape, dtype=torch.uint8)
        rows = [number % self.rows for number in call]
        batch[rows] = torch.stack(list(call.values()))
        features, logits = self.network(batch)
        features = features[rows]
        with self.lock:
            if self.statistics is None:
                statistics = FeatureStatistics(features.shape[1], sync_on_compute=False)
                self.statistics = statistics.to(features.device)
            self.statistics.update(features)
            self.numbers += call
            kept = [index for index, number in enumerate(call) if number in self.keep.features]
            if kept:
                self.kept["features"].append(features[kept].cpu())
                self.kept["kept_numbers"].append(torch.tensor(list(call))[kept])
            if self.keep.logits:
                assert logits is not None, "the metrics were checked against the network"
                self.kept["logits"].append(logits[rows].float().cpu())
        return len(call)

    def finish(self, ranks: Ranks) -> FeatureSet | None:
        """What all ranks have seen, on rank 0; None on the others.

        Rank 0 then holds all that is kept twice. The other ranks' part goes to it through the launcher's store.

        Raises:
            EvaluationError: fewer than two pictures.
        """
        for call in self.rest():
            self.work(call)
        parts = [load(part) if ranks.size > 1 else self._state() for part in ranks.collect(self._packed(ranks))]
        if not ranks.first:
            return None
        seen = [part for part in parts if len(part["numbers"])]
        if sum(len(part["numbers"]) for part in seen) < 2:
            raise EvaluationError("there are fewer than 2 pictures, of which nothing can be measured")
        count, total, products = (torch.stack([part[name] for part in seen]).sum(dim=0) for name in STATE)
        features, logits = _ordered(seen, "features", "kept_numbers"), _ordered(seen, "logits", "numbers")
        return FeatureSet(int(count), *moments(count, total, products), features, logits)

    def _state(self) -> dict[str, Tensor]:
        found = {"numbers": torch.tensor(self.numbers, dtype=torch.int64)}
        if self.statistics is not None:
            found |= {name: getattr(self.statistics, name).cpu() for name in STATE}
        return found | {name: torch.cat(parts) for name, parts in self.kept.items() if parts}

    def _packed(self, ranks: Ranks) -> bytes:
        return save(self._state()) if ranks.size > 1 else b""


def _ordered(parts: Sequence[dict[str, Tensor]], name: str, numbers: str) -> Tensor | None:
    """The rows of all parts in the order of their numbers; None if there are none."""
    holding = [part for part in parts if name in part]
    if not holding:
        return None
    order = torch.cat([part[numbers] for part in holding]).argsort()
    return torch.cat([part[name] for part in holding])[order]


def measure(
    network: FeatureNetwork,
    pictures: Iterable[Numbered],
    ranks: Ranks,
    keep: Keep = Keep(),
    resolution: int | None = None,
) -> FeatureSet | None:
    """The features of pictures, of which each rank is given its share; on rank 0, None on the others.

    Args: as of `Tally`.

    Raises:
        EvaluationError: pictures of several sizes, fewer than two, or a network that does not give features.
    """
    tally = Tally(network, keep, resolution)
    on_cpu = network.device.type == "cpu"
    in_flight = torch.get_num_threads() if on_cpu else 1
    with single_threads(on_cpu) as alone, ThreadPoolExecutor(in_flight, initializer=alone) as workers:
        pending: deque[Future[int]] = deque()
        for numbers, batch in pictures:
            for number, picture in zip(numbers, batch, strict=True):
                if call := tally.put(number, picture):
                    pending.append(workers.submit(tally.work, call))
                while len(pending) > in_flight:
                    pending.popleft().result()
        pending += [workers.submit(tally.work, call) for call in tally.rest()]
        for each in pending:
            each.result()
    return tally.finish(ranks)
