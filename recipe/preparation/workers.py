"""Chunks over processes: the results do not depend on how many there are, nor on who did what.

concurrent.futures.ProcessPoolExecutor was tried and does not do (Python 3.11): after kill -9 of the parent its workers
were still at work, beside those of the next start; of a lost worker it says that it ended "abruptly", but not by which
signal, which is what tells a lack of memory from a crash; and an early end waits for the running chunks and for those
that are queued to the workers already, which took 16 s with chunks of 8 s.
"""

import ctypes
import multiprocessing
import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any, NoReturn

from recipe.command_line import UserError
from recipe.preparation.chunks import BrokenItems, Chunk, Job, Note, write_chunk
from recipe.preparation.outputs import Output
from recipe.preparation.sources.items import PreparationError, shown

LOOK_SECONDS = 0.2  # between looks at progress, and at whether the parent lives
MOST_BROKEN = 100  # items after which a pass that cannot succeed ends

Broken = list[tuple[int, list[tuple[str, str]]]]  # chunk number, (name, reason) of its items
Answer = tuple[str, Any]
Worker = tuple[ForkProcess, Any]
"""A process, and how many items of its chunk it has read, in shared memory."""


def write_chunks(
    job: Job, chunks: Sequence[Chunk], output: Output, workers: int, advance: Callable[[int], object]
) -> tuple[dict[int, Note], list[tuple[str, str]]]:
    """Write chunks on up to `workers` processes.

    Args:
        advance: called now and then with how many more items are done.

    Returns:
        The notes by chunk number, and the broken items (name, reason) of chunks that could not be written because of
        them, in the order of the source; the pass ends early once there are MOST_BROKEN.

    Raises:
        UserError, OSError: the first failure of a process; the others are ended.
    """
    notes: dict[int, Note] = {}
    broken: Broken = []
    for chunk, kind, value in _answers(job, chunks, output, workers, advance):
        if kind == "note":
            notes[chunk.number] = value
        else:
            broken.append((chunk.number, value))
            if sum(len(items) for _, items in broken) >= MOST_BROKEN:
                break
    return notes, [item for _, items in sorted(broken) for item in items]


def _answers(
    job: Job, chunks: Sequence[Chunk], output: Output, workers: int, advance: Callable[[int], object]
) -> Iterator[tuple[Chunk, str, Any]]:
    if min(workers, len(chunks)) <= 1:
        for chunk in chunks:
            yield chunk, *_work(job, chunk, output, advance)
        return
    context = multiprocessing.get_context("fork")
    counter = context.Value(ctypes.c_int64, 0)
    waiting = list(reversed(chunks))
    with _processes(context, min(workers, len(chunks)), (job, output, counter)) as processes:
        busy: dict[Connection, Chunk] = {}
        for connection in processes:
            busy[connection] = waiting.pop()
            connection.send(busy[connection])
        reported = 0
        while busy:
            for ready in wait(list(busy), LOOK_SECONDS):
                assert isinstance(ready, Connection)
                chunk = busy.pop(ready)
                kind, value = _received(ready, *processes[ready], job, chunk)
                if waiting:
                    busy[ready] = waiting.pop()
                    ready.send(busy[ready])
                yield chunk, kind, value
            done = counter.value
            advance(done - reported)
            reported = done


@contextmanager
def _processes(context: Any, number: int, arguments: tuple[Any, ...]) -> Iterator[dict[Connection, Worker]]:
    """Worker processes by the connection to each; all are gone afterwards."""
    processes: dict[Connection, Worker] = {}
    try:
        for _ in range(number):
            ours, theirs = context.Pipe()
            read = context.Value(ctypes.c_int64, 0)
            process = context.Process(target=_worker, args=(theirs, os.getpid(), read, *arguments), daemon=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # forking while libraries have idle threads
                process.start()
            theirs.close()
            processes[ours] = process, read
        yield processes
    finally:
        for connection, (process, _) in processes.items():
            process.kill()
            process.join()
            connection.close()


def _received(connection: Connection, process: ForkProcess, read: Any, job: Job, chunk: Chunk) -> Answer:
    try:
        kind, value = connection.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"status {code}"
        name = shown(job.source.items[min(chunk.start + read.value, chunk.stop - 1)].name)
        raise PreparationError(
            f"a worker process ended by {how} at {name} or soon after, perhaps for lack of memory; start again with "
            "fewer --workers, finished work is kept; if it ends there again, look at that file"
        ) from None
    if kind == "failed":
        raise value
    return kind, value


def _work(job: Job, chunk: Chunk, output: Output, advance: Callable[[int], object]) -> Answer:
    folder = output.scratch / f"{chunk.number:05}"
    try:
        note = write_chunk(job, chunk, folder, advance)
    except BrokenItems as error:
        return "broken", error.items
    output.keep(chunk, folder, note)
    return "note", note


def _worker(connection: Connection, parent: int, read: Any, job: Job, output: Output, counter: Any) -> None:
    """The life of a process: chunks come, answers go. It ends with its parent, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the parent ends its workers
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()

    def advance(items: int) -> None:
        read.value += items
        with counter.get_lock():
            counter.value += items

    while True:
        chunk = connection.recv()
        read.value = 0
        try:
            answer = _work(job, chunk, output, advance)
        except (UserError, OSError) as error:
            answer = ("failed", error)
        except Exception:
            answer = ("failed", RuntimeError(f"in a worker process:\n{traceback.format_exc()}"))
        connection.send(answer)


def _end_with(parent: int) -> NoReturn:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os._exit(1)
