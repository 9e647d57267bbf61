"""How much time a snapshot takes from training, measured in a run through the real training code."""

import itertools
import platform
import statistics
import time

import torch
from composer.core import Callback, State
from composer.loggers import Logger

from recipe.configuration.schema import Config
from recipe.data.checks import check_data, resolve
from recipe.storage.addresses import open_place
from recipe.storage.uploads import Uploads
from recipe.training.callbacks import snapshot_tensors
from recipe.training.model import unwrap
from recipe.training.preflight import Start
from recipe.training.run import meet
from recipe.training.trainer import build_trainer

STEPS_BETWEEN = 10  # steps from one snapshot to the next
SNAPSHOTS = 4


class Clock(Callback):
    """Records when each batch begins, in seconds, after the GPU has finished the one before."""

    def __init__(self):
        self.starts: list[float] = []

    def batch_start(self, state: State, logger: Logger) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.starts.append(time.perf_counter())


def bench_snapshots(config: Config, rate: float) -> None:
    """Print the time of a step, the time that a snapshot adds to one, and the time of its copy to the CPU alone.

    Args:
        config: of a run of `STEPS_BETWEEN * SNAPSHOTS + 5` steps with a snapshot every `STEPS_BETWEEN`.
        rate: MB/s to which uploads are slowed down.
    """
    data = check_data(config)
    found = Start(resolve(config, data.facts), data, open_place(config.run_folder()), None)
    trainer, folder, _ = build_trainer(*meet(config, found), None)
    folder.uploads = Uploads()
    store, sizes = folder.store, []

    def slow_store(name: str) -> None:
        sizes.append((folder.local / name).stat().st_size)
        time.sleep(sizes[-1] / (rate * 1e6))
        store(name)

    folder.store = slow_store
    clock = Clock()
    trainer.state.callbacks.insert(0, clock)
    trainer.fit()
    folder.uploads.drain()
    pairs = itertools.pairwise(clock.starts)
    steps = [after - before for before, after in pairs][STEPS_BETWEEN // 2 :]
    first = STEPS_BETWEEN - 1 - STEPS_BETWEEN // 2
    with_snapshot = steps[first::STEPS_BETWEEN]
    usual = statistics.median(step for index, step in enumerate(steps) if index % STEPS_BETWEEN != first)
    started = time.perf_counter()
    for _, average in unwrap(trainer.state.model).averages():
        snapshot_tensors(average, torch.float16)
    copy = time.perf_counter() - started
    lost = statistics.median(with_snapshot) - usual
    after = statistics.median(step for index, step in enumerate(steps) if index % STEPS_BETWEEN == first + 1)
    trainer.close()
    print(f"machine            {platform.processor() or platform.machine()}, torch {torch.__version__}")
    megabytes = sizes[0] / 1e6
    print(f"snapshot           {len(sizes)} files of {megabytes:.1f} MB, {megabytes / rate:.1f} s each to upload")
    print(f"step               {usual * 1e3:.1f} ms (median)")
    print(f"copy to the CPU    {copy * 1e3:.1f} ms for all averages")
    print(f"lost per snapshot  {lost * 1e3:.1f} ms (median)")
    print(f"step after it      {after * 1e3:.1f} ms (median), while it is written and uploaded")
    bound = usual + copy
    print(
        f"bound              {bound * 1e3:.1f} ms = a step and the copy: {'holds' if lost < bound else 'DOES NOT HOLD'}"
    )
