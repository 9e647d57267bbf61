"""Writes and uploads in the background, strictly in order, so that training never waits for a disk or the network.

Order is what makes a kill harmless: a checkpoint is handed in after the snapshots of its time, so where it has arrived,
they have too.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

MAX_PENDING = 64  # jobs; past it training waits, so that a network that is too slow fills neither memory nor disk


class Uploads:
    """One thread that runs jobs in the order in which they come, and none after the first that fails.

    Args:
        max_pending: jobs that may wait; `submit` blocks beyond.
    """

    def __init__(self, max_pending: int = MAX_PENDING):
        self._jobs: queue.Queue[Callable[[], object]] = queue.Queue(max_pending)
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._work, daemon=True, name="uploads")
        self._thread.start()
        self.seconds_waited = 0.0  # that submit and drain took from the caller

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                if self._failure is None:
                    job()
            except Exception as error:
                log.error("%s", error)
                self._failure = error
            finally:
                self._jobs.task_done()

    def submit(self, job: Callable[[], object]) -> None:
        """Run `job` after all those before it."""
        started = time.monotonic()
        self._jobs.put(job)
        self.seconds_waited += time.monotonic() - started

    @property
    def failure(self) -> Exception | None:
        """What went wrong, if anything: nothing has been written since."""
        return self._failure

    def drain(self) -> None:
        """Wait until everything submitted is done or has failed."""
        started = time.monotonic()
        self._jobs.join()
        self.seconds_waited += time.monotonic() - started
