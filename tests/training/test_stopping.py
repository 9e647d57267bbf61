"""A run that is told to stop, in the middle and in its last batch, which is an end like any other."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from composer.core import Algorithm, Callback, State
from composer.loggers import Logger

from helpers.commands import train_arguments
from helpers.forks import Forked
from helpers.small_snapshots import NETWORK
from helpers.step_inputs import inputs_algorithm
from helpers.training import Examples, fit
from recipe.edm2.networks.precond import Precond
from recipe.storage.uploads import Uploads
from recipe.training.model import DiffusionModel
from recipe.training.stopping import SIGNALS, GracefulStop, UnsavableError

STEPS = 4


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """The handlers of the test's own process come back."""
    numbers = list(SIGNALS)
    before = [signal.getsignal(number) for number in numbers]
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


class InBatch(Callback):
    """Does something in one batch, before it ends, and notes how many there were."""

    def __init__(self, batch: int, signal_number: int | None, uploads: Uploads | None = None):
        self.batch, self.signal_number, self.uploads = batch, signal_number, uploads
        self.ended = 0

    def after_forward(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value == self.batch - 1:
            if self.signal_number is not None:
                os.kill(os.getpid(), self.signal_number)
            if self.uploads is not None:
                self.uploads.submit(lambda: Path("/dev/null/x").read_bytes())
                self.uploads.drain()

    def batch_end(self, state: State, logger: Logger) -> None:
        self.ended = state.timestamp.batch.value


def train(*callbacks: Callback) -> None:
    torch.manual_seed(3)
    examples = Examples(torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8), torch.arange(64) % 10)
    algorithms: list[Algorithm] = [inputs_algorithm(5)]
    fit(DiffusionModel(Precond(**NETWORK), [0.05]), examples, algorithms, 16, STEPS, callbacks=callbacks)


@pytest.mark.parametrize(
    ("batch", "stopped", "number"),
    [
        (1, True, signal.SIGUSR1),
        (3, True, signal.SIGTERM),
        (2, True, signal.SIGINT),
        (1, True, signal.SIGHUP),
        (4, False, signal.SIGTERM),
        (9, False, signal.SIGTERM),
    ],
)
def test_it_stops_after_the_batch_unless_that_is_the_last(batch: int, stopped: bool, number: int):
    stop = GracefulStop(Uploads())
    sender = InBatch(batch, number)
    train(stop, sender)
    assert (stop.stopped, sender.ended) == (stopped, min(batch, STEPS))


def test_what_cannot_be_stored_ends_the_run_in_that_batch():
    uploads = Uploads()
    fails = InBatch(2, None, uploads)
    with pytest.raises(UnsavableError, match=r"batch 2: .*Not a directory"):
        train(fails, GracefulStop(uploads))
    assert fails.ended == 2


def test_the_second_ctrl_c_is_left_to_the_system(capfd: pytest.CaptureFixture[str]):
    """So it works while no code of Python's runs, and leaves no traceback."""
    stop = GracefulStop(Uploads())
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.received == "Ctrl-C" and signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert "finishing the batch and saving; a second Ctrl-C ends at once" in capfd.readouterr().err


def test_nohup_is_respected():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    GracefulStop(Uploads())
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_worker_of_the_loader_is_not_told(capfd: pytest.CaptureFixture[str]):
    stop = GracefulStop(Uploads())
    pid = os.fork()
    if pid == 0:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(0 if stop.received is None else 1)
    assert os.waitpid(pid, 0)[1] == 0 and capfd.readouterr().err == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_batch_that_does_not_come_is_not_waited_for(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Only one that is late: a batch that is being computed is finished, however long it takes."""
    ended: list[int] = []
    monkeypatch.setattr("recipe.training.stopping.os._exit", ended.append)
    monkeypatch.setattr("recipe.training.stopping.STUCK", 0.6)
    waited = 0.0
    GracefulStop(Uploads(), waited=lambda: waited)
    os.kill(os.getpid(), number)
    time.sleep(0.7)
    assert ended == []
    waited = 0.7
    deadline = time.monotonic() + 5
    while not ended and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ended == [128 + number]
    assert "no batch has come from the data" in capsys.readouterr().err


STUCK_RUN = """
import time
from recipe.data.dataset import ImageDataset
from recipe.training import stopping
stopping.STUCK = 4.0
def get_item(self, index, retry=7):
    open("{asked}", "w").close()
    time.sleep(1000)
ImageDataset.get_item = get_item
from recipe.train import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_that_waits_for_data_ends(workers: int, digits: Path, tmp_path: Path):
    script, asked = tmp_path / "stuck.py", tmp_path / "asked"
    script.write_text(STUCK_RUN.replace("{asked}", str(asked)))
    arguments = train_arguments(digits, tmp_path / "run", f"data.num_workers={workers}")
    with Forked(script, *arguments, timeout=120) as process:
        (pid,) = process.ranks()
        while not asked.exists():
            assert process.poll() is None, process.errors()
            time.sleep(0.1)
        time.sleep(2)  # by then it waits for the first batch
        (children,) = Path(f"/proc/{pid}/task").glob(f"{pid}/children")
        left = children.read_text().split()
        assert len(left) >= workers
        os.kill(pid, signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
        assert "no batch has come from the data" in process.errors()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{child}").exists() for child in left):
        assert time.monotonic() < deadline, "a worker outlives its rank"
        time.sleep(0.1)
