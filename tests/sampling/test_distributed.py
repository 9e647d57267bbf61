"""An image's bits are a function of its seed and label alone, and each image is drawn by exactly one rank."""

import itertools
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from helpers.small_snapshots import small_network
from recipe.edm2.images import to_pixels
from recipe.edm2.samplers.generate import SamplerSettings, generate
from recipe.sampling.distributed import Call, Drawer, Wanted, calls, draw, rows_of, share

ROWS = rows_of(torch.device("cpu"))
SEEDS = [0, 1, 2, 5, 8, 13, 16, 24, 1000, 2**62]
WANTED = [Wanted(seed, seed % 11 - 1) for seed in SEEDS]
ODD = {"img_resolution": 6, "model_channels": 20, "channels_per_head": 20, "attn_resolutions": [3]}
"""Sizes whose loops leave something over after the last whole vector of the processor."""


@pytest.fixture
def several_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def images(drawer: Drawer, wanted: list[Wanted], batch_size: int = 64) -> dict[Wanted, Tensor]:
    kept: dict[Wanted, Tensor] = {}
    assert sum(draw(drawer, wanted, kept.__setitem__, batch_size)) == len(wanted) == len(kept)
    return kept


def test_each_image_is_in_its_own_row():
    chosen = random.Random(1).sample(range(200), 90)
    found = calls([Wanted(seed, 0) for seed in chosen], 8)
    assert sorted(each.seed for call in found for each in call.values()) == sorted(chosen)
    assert all(each.seed % 8 == row for call in found for row, each in call.items())
    assert len(found) == max(sum(seed % 8 == row for seed in chosen) for row in range(8))


def test_seeds_that_follow_each_other_fill_the_rows():
    assert [len(call) for call in calls([Wanted(seed, 0) for seed in range(3, 43)], 8)] == [8] * 5


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_ranks_share_the_seeds(size: int):
    wanted = [Wanted(seed, 0) for seed in range(100)]
    parts = [share(wanted, 8, rank, size) for rank in range(size)]
    assert sorted((each for part in parts for each in part), key=lambda each: each.seed) == wanted
    assert max(map(len, parts)) - min(map(len, parts)) <= 12
    # whatever else is asked for, so that what an interrupted launch left is not drawn again by another rank
    assert [share(wanted[50:], 8, rank, size) for rank in range(size)] == [
        [each for each in part if each.seed >= 50] for part in parts
    ]


@pytest.mark.parametrize(("changes", "guidance"), [({}, 1.0), (ODD, 1.5)], ids=["even", "odd"])
def test_bits_do_not_depend_on_the_others(changes: dict, guidance: float):
    """Alone, all together, in another order, with other neighbours: the same bits."""
    settings = SamplerSettings(num_steps=1, S_churn=1, guidance=guidance)
    seen: list[Tensor] = []
    drawer = Drawer(small_network(1, **changes), settings, pictures=lambda x: seen.append(x) or x)
    together = images(drawer, WANTED)
    assert all(len(rows) == ROWS for rows in seen)
    for wanted in (WANTED[::-1], WANTED[3:4], WANTED[6:], [Wanted(7, 3), *WANTED[2:5], Wanted(9, 1)]):
        for each, image in images(drawer, wanted, 7).items():
            assert each not in together or torch.equal(image, together[each]), each


def test_bits_do_not_depend_on_the_threads(request: pytest.FixtureRequest):
    """Of a network that is large enough for torch to divide its sums among threads."""
    net = small_network(1, img_resolution=16, model_channels=32, channels_per_head=32, attn_resolutions=[8])
    drawer = Drawer(net, SamplerSettings(num_steps=1), pictures=lambda x: x)
    alone = images(drawer, WANTED)
    request.getfixturevalue("several_threads")
    for each, image in images(drawer, WANTED).items():
        assert torch.equal(image, alone[each]), each
    assert torch.get_num_threads() == 3


def test_they_are_the_images_of_their_seeds():
    net, settings = small_network(1), SamplerSettings(num_steps=3)
    seeds, labels = (torch.tensor([getattr(each, name) for each in WANTED]) for name in ("seed", "label"))
    expected = to_pixels(generate(net, seeds, labels, settings))
    for image, other in zip(images(Drawer(net, settings), WANTED).values(), expected, strict=True):
        assert (image.int() - other.int()).abs().max() <= 1  # of another number of rows


def test_memory_is_bounded_by_the_batch(several_threads: None):
    """Of many images no more are there at a time than the batch size allows, also if storage is slow."""
    alive, most, lock, workers = 0, 0, threading.Lock(), set[int]()

    def pictures(x: Tensor) -> Tensor:
        nonlocal alive, most
        workers.add(threading.get_ident())
        with lock:
            alive += len(x)
            most = max(most, alive)
        return x

    def keep(each: Wanted, image: Tensor) -> None:
        nonlocal alive
        threading.Event().wait(0.02)
        with lock:
            alive -= 1

    drawer = Drawer(small_network(0), SamplerSettings(num_steps=1), pictures=pictures)
    assert sum(draw(drawer, [Wanted(seed, 0) for seed in range(10 * ROWS)], keep, 2 * ROWS)) == 10 * ROWS
    assert most == 2 * ROWS and alive == 0
    assert len(workers) <= 2  # each has memory of its own


def test_the_first_failure_ends_it(several_threads: None):
    """And nothing is kept after it has been told, of what is being drawn at that moment either."""
    kept, failed, drawn, slow = [], threading.Event(), itertools.count(), threading.Event()

    def pictures(x: Tensor) -> Tensor:
        if next(drawn) > 0:
            assert failed.wait(10)
            slow.wait(1.5)
        return x

    def keep(each: Wanted, image: Tensor) -> None:
        if not failed.is_set():
            failed.set()
            raise OSError("the disk is full")
        slow.wait(0.1)
        kept.append(each.seed)

    drawer, threads = (
        Drawer(small_network(0), SamplerSettings(num_steps=1), pictures=pictures),
        threading.active_count(),
    )
    wanted = [Wanted(seed, 0) for seed in range(8 * ROWS)]
    with pytest.raises(OSError, match="the disk is full"):
        list(draw(drawer, wanted, keep, 2 * ROWS))
    before = list(kept)
    slow.wait(2)
    assert kept == before and len(before) in (ROWS - 1, 2 * ROWS - 1)  # the other call may have been the first
    assert threading.active_count() == threads  # none waits for ever, which would keep the command from ending


def test_what_is_being_written_is_waited_for(several_threads: None):
    """A call fails while another one is being written: nothing of that is written after the failure has been told."""
    kept, writing, told = [], threading.Event(), threading.Event()

    def keep(each: Wanted, image: Tensor) -> None:
        if each.seed == 0:
            assert writing.wait(20)
            raise OSError("the disk is full")
        if each.seed < ROWS:
            return  # else it would hold all threads
        writing.set()
        threading.Event().wait(0.3)
        kept.append(told.is_set())

    drawer = Drawer(small_network(0), SamplerSettings(num_steps=1))
    with pytest.raises(OSError, match="the disk is full"):
        list(draw(drawer, [Wanted(seed, 0) for seed in range(8 * ROWS)], keep, 2 * ROWS))
    told.set()
    threading.Event().wait(1)
    assert kept == [False] * ROWS


def test_what_is_being_drawn_is_not_written(several_threads: None, monkeypatch: pytest.MonkeyPatch):
    """A call fails while another one is being drawn, and that one is ready before its thread is told to end."""
    ending, kept = threading.Event(), []

    class SlowToEnd(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            ending.set()
            threading.Event().wait(0.5)
            super().shutdown(wait, cancel_futures=cancel_futures)

    class SecondWaits(Drawer):
        def __call__(self, call: Call) -> Tensor:
            images = super().__call__(call)
            assert min(each.seed for each in call.values()) < ROWS or ending.wait(20)
            return images

    def keep(each: Wanted, image: Tensor) -> None:
        if each.seed < ROWS:
            raise OSError("the disk is full")
        kept.append(each.seed)

    monkeypatch.setattr("recipe.sampling.distributed.ThreadPoolExecutor", SlowToEnd)
    drawer = SecondWaits(small_network(0), SamplerSettings(num_steps=1))
    with pytest.raises(OSError, match="the disk is full"):
        list(draw(drawer, [Wanted(seed, 0) for seed in range(2 * ROWS)], keep, 2 * ROWS))
    threading.Event().wait(0.5)
    assert kept == []
