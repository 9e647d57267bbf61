"""Ends a run at the end of a batch, on all ranks at once: on a signal, or when what it writes cannot be kept."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from recipe.command_line import UserError
from recipe.storage.ownership import Ownership
from recipe.storage.uploads import Uploads

log = logging.getLogger(__name__)

STOP, FAIL = 1, 2
STUCK = 15.0  # seconds without a batch after which a signal ends the run at once; launchers kill after 30


class UnsavableError(UserError):
    """A run whose results cannot be stored any more; the message says why."""


class GracefulStop(Callback):
    """Finishes the batch, lets Composer write a checkpoint and ends the run when SIGTERM or SIGUSR1 came to any rank.

    Also ends it on all ranks, with UnsavableError, when an upload failed for good or another run took the folder.
    Comes after the callbacks that act in a run's last batch: a stopped run has not reached it.

    Args:
        uploads: of this rank.
        ownership: of the run's folder; None on ranks other than 0.
        waited: seconds for which this rank has been waiting for its next batch.
    """

    def __init__(self, uploads: Uploads, ownership: Ownership | None = None, waited: Callable[[], float] = lambda: 0.0):
        self.uploads = uploads
        self.ownership = ownership
        self.waited = waited
        self.received: str | None = None
        self.stopped = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        threading.Thread(target=self._end_if_stuck, args=(number,), daemon=True, name="stop").start()

    def _end_if_stuck(self, number: int) -> None:
        """A batch that does not come is not waited for: there is nothing new to save, and a launcher would kill."""
        while self.waited() < STUCK:
            time.sleep(0.5)
        print(
            f"{signal.Signals(number).name}: no batch has come from the data for {STUCK:.0f} s; ending without it. The "
            "same command goes on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(128 + number)

    def leave_together(self) -> None:
        """Wait for all ranks; from then on no signal counts: a launcher that sees one rank leave ends the others."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)  # unlike a handler it lasts to the end of the process
        dist.barrier()
        # Ends its threads. One that still puts away the barrier when Python exits may abort the process.
        torch.distributed.destroy_process_group()

    def problem(self) -> str | None:
        if self.uploads.failure is not None:
            return str(self.uploads.failure)
        return None if self.ownership is None else self.ownership.lost

    def batch_end(self, state: State, logger: Logger) -> None:
        own = FAIL if self.problem() is not None else STOP if self.received is not None else 0
        signals = state.device.tensor_to_device(torch.tensor(own))
        dist.all_reduce(signals, reduce_operation="MAX")
        if int(signals) == FAIL:
            problems = [problem for problem in dist.all_gather_object(self.problem()) if problem is not None]
            raise UnsavableError(f"batch {state.timestamp.batch.value}: {problems[0]}")
        if int(signals) == STOP and not self.stopped:
            reason, batch = self.received or "signal to another rank", state.timestamp.batch.value
            log.warning("%s: saving and stopping after batch %d", reason, batch)
            assert state.max_duration is not None
            self.stopped = state.timestamp < state.max_duration
            state.stop_training()
