"""The curves of a run for TensorBoard: one event file for each start, and each step once.

Composer's logger closes its file at each flush, 20 batches here: 26,000 files in a run of the paper's length.
"""

import time
from pathlib import Path
from typing import Any

from composer.core import State
from composer.loggers import Logger, TensorboardLogger
from composer.utils import dist

from recipe.training.folder import RunFolder

FLUSH, FLUSH_SECONDS = 20, 30  # batches, and seconds, after which a viewer sees them and a kill does not lose them
UPLOAD_SECONDS = 60.0  # between uploads of a file that grows: all of it is sent each time
LONGEST_SECONDS = 600.0  # as long as a long file, of which little is new, may stay behind
GROWTH = 1.02


class Curves(TensorboardLogger):
    """Composer's logger with one file, stored while it grows.

    What a run logged after the checkpoint that this start goes on from is purged: TensorBoard shows it no more. All
    that belongs to a batch is logged under its number, counted from 0, also what callbacks log at its end, where the
    clock has advanced: so the checkpoint after batch N knows exactly the steps below N.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: RunFolder):
        super().__init__(log_dir=str(folder.local / "tensorboard"), flush_interval=FLUSH)
        self.folder = folder
        self.first_step = 0
        self.path = Path()
        self.batch: int | None = None  # in progress
        self.stored = 0  # bytes of the file
        self.stored_at = time.monotonic()

    def init(self, state: State, logger: Logger) -> None:
        self.run_name = state.run_name  # the file is begun when the clock is known

    def fit_start(self, state: State, logger: Logger) -> None:
        if dist.get_global_rank() == 0:
            self.first_step = state.timestamp.batch.value
            self._initialize_summary_writer()

    def _initialize_summary_writer(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        assert self.log_dir is not None and self.run_name is not None
        folder = Path(self.log_dir) / self.run_name
        before = set(folder.glob("*"))
        self.writer = SummaryWriter(folder, purge_step=self.first_step, flush_secs=FLUSH_SECONDS)
        (self.path,) = set(folder.glob("*")) - before

    def batch_start(self, state: State, logger: Logger) -> None:
        self.batch = state.timestamp.batch.value

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        self.batch = None

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if self.writer is not None:
            super().log_metrics(metrics, self._step(step))

    def log_images(
        self,
        images: Any,
        name: str = "Images",
        channels_last: bool = False,
        step: int | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if self.writer is not None:
            super().log_images(images, name, channels_last, self._step(step), *args, **kwargs)

    def _step(self, step: int | None) -> int | None:
        return step if step is None or self.batch is None else min(step, self.batch)

    def _flush(self, logger: Logger) -> None:
        if self.writer is None:
            return
        self.writer.flush()
        size, seconds = self.path.stat().st_size, time.monotonic() - self.stored_at
        if seconds > LONGEST_SECONDS or (seconds > UPLOAD_SECONDS and size > GROWTH * self.stored):
            self._store()

    def _store(self) -> None:
        """Have what is written by now stored in place of what was stored before."""
        size = self.path.stat().st_size
        if size > self.stored:
            self.folder.keep_beginning(str(self.path.relative_to(self.folder.local)), size)
        self.stored, self.stored_at = size, time.monotonic()

    def close(self, state: State, logger: Logger) -> None:
        if self.writer is not None:
            self.writer.flush()
            self._store()
            self.writer.close()
            self.writer = None
