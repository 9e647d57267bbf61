"""Jobs in the background: in order, without delay to the caller, and nothing after a failure."""

import functools
import threading
import time

import pytest

from recipe.storage.uploads import Uploads


@pytest.mark.alone
def test_order_and_no_delay():
    done: list[int] = []

    def note(index: int) -> None:
        time.sleep(0.02 if index % 3 else 0)
        done.append(index)

    uploads = Uploads()
    started = time.monotonic()
    for index in range(20):
        uploads.submit(functools.partial(note, index))
    assert time.monotonic() - started < 0.1
    uploads.drain()
    assert done == list(range(20))


def test_nothing_runs_after_a_failure():
    done: list[int] = []
    uploads = Uploads()
    uploads.submit(lambda: done.append(1))
    uploads.submit(lambda: 1 / 0)
    uploads.submit(lambda: done.append(2))
    uploads.drain()
    assert done == [1]
    assert isinstance(uploads.failure, ZeroDivisionError)


def test_a_full_queue_holds_the_caller():
    gate = threading.Event()
    uploads = Uploads(max_pending=2)
    for _ in range(3):
        uploads.submit(gate.wait)  # one at work, two waiting
    late = threading.Thread(target=uploads.submit, args=(lambda: None,), daemon=True)
    late.start()
    late.join(0.2)
    assert late.is_alive()
    gate.set()
    late.join(5)
    assert not late.is_alive()
    uploads.drain()
    assert uploads.seconds_waited == pytest.approx(0.2, abs=0.2)
