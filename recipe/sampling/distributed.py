"""Drawing on any number of ranks and threads, such that an image's bits depend on its seed and label alone.

Which kernels compute a network's output, and so how its sums are rounded, depends on the shape of what it is given; in
some, on the place within it. So the network is always called with the same number of rows, and the image of a seed is
always in the same one of them: row `seed % rows`. Rows that nobody asked for are drawn too, and thrown away. On the CPU
the number of threads changes sums as well: each call has one, and several calls go on side by side.
"""

import contextlib
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch
from torch import Tensor

from recipe.edm2.images import to_pixels
from recipe.edm2.networks.precond import Precond
from recipe.edm2.samplers.generate import SamplerSettings, generate

ROWS = {"cpu": 16, "cuda": 64}
"""Rows of each call of the network, by kind of device (docs/performance.md). Another number changes the last bits of
all images."""
AHEAD = 2  # calls that a GPU's images may be in flight of, if the batch allows: one is drawn, one is written
PATIENCE = 30.0  # seconds that an ending waits for what is being written


@dataclass(frozen=True, slots=True)
class Wanted:
    """An image to draw: its seed, and its class or -1."""

    seed: int
    label: int


Call = Mapping[int, Wanted]
"""The images of one call of the network, by row."""


def rows_of(device: torch.device) -> int:
    """Rows of each call on a device."""
    return ROWS.get(device.type, ROWS["cuda"])


def share(wanted: Iterable[Wanted], rows: int, rank: int, size: int) -> list[Wanted]:
    """What one of `size` ranks draws: whole calls by their seeds, the same whatever else is asked for."""
    return [each for each in wanted if each.seed // rows % size == rank]


def calls(wanted: Iterable[Wanted], rows: int) -> Sequence[Call]:
    """The fewest calls in which each image is in its own row; seeds that follow each other fill them."""
    found: list[dict[int, Wanted]] = []
    taken: Counter[int] = Counter()
    for each in wanted:
        row = each.seed % rows
        if taken[row] == len(found):
            found.append({})
        found[taken[row]][row] = each
        taken[row] += 1
    return found


@dataclass(frozen=True)
class Drawer:
    """Draws the images of a call.

    Attributes:
        net, guide, settings: as in `generate`.
        pictures: makes uint8 pictures of what the network makes.
    """

    net: Precond
    settings: SamplerSettings
    guide: Precond | None = None
    pictures: Callable[[Tensor], Tensor] = to_pixels

    @property
    def device(self) -> torch.device:
        return self.net.unet.out_gain.device

    def __call__(self, call: Call) -> Tensor:
        """uint8 [N, C, H, W] on the CPU, in the order of the call."""
        rows = [call.get(row, Wanted(row, -1)) for row in range(rows_of(self.device))]
        seeds = torch.tensor([each.seed for each in rows], dtype=torch.int64, device=self.device)
        labels = torch.tensor([each.label for each in rows], dtype=torch.int64, device=self.device)
        images = generate(self.net, seeds, labels, self.settings, self.guide).cpu()
        return self.pictures(images)[list(call)]


def draw(
    drawer: Drawer, wanted: Sequence[Wanted], keep: Callable[[Wanted, Tensor], object], batch_size: int
) -> Iterator[int]:
    """Draw images and hand each to `keep`, in threads; yields how many more are kept, time and again.

    Args:
        drawer: draws them.
        wanted: the images.
        keep: stores an image, uint8 [C, H, W]. Called from several threads.
        batch_size: images in memory at once, but at least those of a call.

    Raises:
        Exception: the first of `keep`. Nothing is being kept any more then, nor after an end by Ctrl-C.
    """
    rows, on_cpu = rows_of(drawer.device), drawer.device.type == "cpu"
    in_flight = max(1, min(batch_size // rows, torch.get_num_threads() if on_cpu else AHEAD))
    turn = threading.Semaphore(in_flight if on_cpu else 1)
    stopped, writing = threading.Event(), threading.Semaphore(in_flight)

    def work(call: Call) -> int:
        with turn:
            images = drawer(call)
        with writing:
            if stopped.is_set():
                return 0
            stored = [keepers.submit(keep, *each) for each in zip(call.values(), images, strict=True)]
            wait(stored)  # for all of them, also if one fails
        for each in stored:
            each.result()
        return len(call)

    keepers = ThreadPoolExecutor(4 * in_flight)
    with single_threads(on_cpu) as alone:
        workers = ThreadPoolExecutor(in_flight, initializer=alone)
        pending: deque[Future[int]] = deque()
        try:
            for call in calls(wanted, rows):
                if len(pending) == in_flight:
                    yield pending.popleft().result()
                pending.append(workers.submit(work, call))
            while pending:
                yield pending.popleft().result()
        finally:
            stopped.set()
            workers.shutdown(wait=False, cancel_futures=True)
            held = [writing.acquire(timeout=PATIENCE) for _ in range(in_flight)]
            writing.release(len(held))  # what is still being drawn comes here later, and is not kept
            keepers.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def single_threads(on_cpu: bool) -> Iterator[Callable[[], None]]:
    """What each thread that draws does first: on the CPU it keeps torch from dividing its work further."""
    threads = torch.get_num_threads()
    try:
        yield (lambda: torch.set_num_threads(1)) if on_cpu else (lambda: None)
    finally:
        torch.set_num_threads(threads)
