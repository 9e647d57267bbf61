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

from recipe import interrupts
from recipe.command_line import UserError, rank
from recipe.storage.ownership import Ownership
from recipe.storage.places import ExpiredKeysError
from recipe.storage.uploads import Uploads

log = logging.getLogger(__name__)

STOP, FAIL = 1, 2
SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGUSR1: "SIGUSR1", signal.SIGHUP: "SIGHUP"}
STUCK = 15.0  # seconds without a batch after which a signal ends the run at once; launchers kill after 30


class UnsavableError(UserError):
    """A run whose results cannot be stored any more; the message says why.

    Args:
        message: what to say.
        again: as of what could not be stored: later the same command may go on by itself.
    """

    def __init__(self, message: str, again: bool = False):
        super().__init__(message)
        self.again = again


class GracefulStop(Callback):
    """Finishes the batch, lets Composer write a checkpoint and ends the run when it is told to stop.

    What tells it is Ctrl-C, SIGTERM, SIGUSR1 or SIGHUP to any rank; a second Ctrl-C ends the process at once. Also ends
    the run on all ranks, with UnsavableError, when an upload failed for good or another run took the folder. Comes
    after the callbacks that act in a run's last batch: a stopped run has not reached it.

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
        self.process = os.getpid()
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # which nohup sets
                signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:
            return  # a worker of the loader, which ends with its rank
        self.received = self.received or SIGNALS[signal.Signals(number)]
        threading.Thread(target=self._end_if_stuck, args=(number,), daemon=True, name="stop").start()
        if number != signal.SIGINT:
            return
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # at once, even where no handler of Python's can run
        if "TORCHELASTIC_RUN_ID" in os.environ:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # what torchrun makes of the second Ctrl-C
        if rank() == 0:
            limit = ", for which the launcher waits 30 seconds" if interrupts.launcher_waits else ""
            interrupts.write_line(
                f"train.py: finishing the batch and saving{limit}; a second Ctrl-C ends at once, unsaved"
            )

    def _end_if_stuck(self, number: int) -> None:
        """A batch that does not come is not waited for: there is nothing new to save, and a launcher would kill."""
        while self.waited() < STUCK:
            time.sleep(0.5)
        name, what = SIGNALS[signal.Signals(number)], f"no batch has come from the data for {STUCK:.0f} s"
        print(
            f"{name}: {what}; ending without it. The same command goes on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(128 + number)

    def leave_together(self) -> None:
        """Wait for all ranks; from then on no signal counts: a launcher that sees one rank leave ends the others."""
        for number in SIGNALS:
            if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_DFL:
                signal.signal(number, signal.SIG_IGN)  # unlike a handler it lasts to the end of the process
        dist.barrier()
        # Ends its threads. One that still puts away the barrier when Python exits may abort the process.
        torch.distributed.destroy_process_group()

    def problem(self) -> UserError | None:
        """Why what this rank writes cannot be kept, if it cannot."""
        failure = self.uploads.failure
        if failure is not None:
            return UnsavableError(str(failure), isinstance(failure, ExpiredKeysError))
        lost = None if self.ownership is None else self.ownership.lost
        return None if lost is None else UnsavableError(lost)

    def raise_together(self, where: str = "") -> None:
        """Raise the first problem of any rank, with `where` before its message, on all ranks."""
        own = self.problem()
        for found in dist.all_gather_object(None if own is None else (str(own), own.again)):
            if found is not None:
                raise UnsavableError(f"{where}{found[0]}", found[1])

    def batch_end(self, state: State, logger: Logger) -> None:
        own = FAIL if self.problem() is not None else STOP if self.received is not None else 0
        signals = state.device.tensor_to_device(torch.tensor(own))
        dist.all_reduce(signals, reduce_operation="MAX")
        if int(signals) == FAIL:
            self.raise_together(f"batch {state.timestamp.batch.value}: ")
        if int(signals) == STOP and not self.stopped:
            reason, batch = self.received or "signal to another rank", state.timestamp.batch.value
            log.warning("%s: saving and stopping after batch %d", reason, batch)
            assert state.max_duration is not None
            self.stopped = state.timestamp < state.max_duration
            state.stop_training()
