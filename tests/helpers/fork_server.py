"""Forks the project's scripts from a process that has imported what they need; helpers/forks.py starts it and asks it.

It reads requests, one JSON object a line, from its standard input and answers each with the script's exit status.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from recipe.lean_imports import import_less

IMPORTS = [
    "recipe.training.run",
    "recipe.training.trainer",
    "recipe.planning.plan",
    "recipe.preparation.pipeline",
    "recipe.sampling.networks",
    "recipe.weights.posthoc",
    "recipe.storage.s3",
    "composer.algorithms",
    "huggingface_hub.serialization",
    "torch.utils.tensorboard",
]
GRACE = 30.0  # seconds between SIGTERM and SIGKILL for ranks whose peer failed, as Composer's launcher waits
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Answer each request with a status, or, in a child, become the rank that a request asks for."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    _redirect(0, os.devnull, os.O_RDONLY)
    os.dup2(2, 1)
    _die_with_parent()
    _prepare()
    for text in requests:
        request = json.loads(text)
        processes = []
        for rank in range(request["ranks"]):
            pid = os.fork()
            if pid == 0:
                requests.close()
                answers.close()
                _become(rank, request)
            processes.append(pid)
        answers.write(json.dumps(_wait(processes, request["timeout"])) + "\n")
        answers.flush()


def _prepare() -> None:
    sys.path.insert(1, str(Path(__file__).parents[1]))  # where scripts of the tests find `helpers`
    import_less()  # as the commands do
    gc.disable()  # a sixth of the time of these imports
    for module in IMPORTS:
        importlib.import_module(module)
    gc.enable()
    gc.freeze()  # so that a child's collections leave the memory shared


def _become(rank: int, request: dict[str, Any]) -> NoReturn:
    """Run the script as this rank, and end as the interpreter does."""
    _die_with_parent()
    os.setsid()
    names = ("0.out", "0.err") if rank == 0 else (f"{rank}.err", f"{rank}.err")
    for descriptor, name in zip((1, 2), names, strict=True):
        _redirect(descriptor, os.path.join(request["folder"], name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    Path(request["folder"], f"{rank}.pid").write_text(str(os.getpid()))
    os.environ.clear()
    os.environ.update(request["environment"])
    if request["ranks"] > 1:
        size = str(request["ranks"])
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=size,
            LOCAL_WORLD_SIZE=size,
            NODE_RANK="0",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(request["port"]),
        )
    from composer.utils import checkpoint  # where a rank's name of its part was made during the import, in the server

    checkpoint._TORCH_DISTRIBUTED_CHECKPOINTS_FILENAME = f"__{rank}_0.distcp"
    script, *arguments = request["line"]
    sys.argv = [script, *arguments]
    sys.path[0] = os.path.dirname(script)
    runpy.run_path(script, run_name="__main__")
    sys.exit(0)


def _wait(processes: list[int], timeout: float) -> int | None:
    """The first status that is not 0, or 0; None after `timeout`. Ends the ranks whose peer failed."""
    deadline, first = time.monotonic() + timeout, 0
    left = list(processes)
    while left:
        for pid in list(left):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                left.remove(pid)
                code = os.waitstatus_to_exitcode(status)
                if code and not first:
                    first = code
                    deadline = min(deadline, time.monotonic() + GRACE)
                    _signal(left, signal.SIGTERM)
        if left and time.monotonic() > deadline:
            _signal(left, signal.SIGKILL)
            for pid in left:
                os.waitpid(pid, 0)
            return first or None
        time.sleep(0.01)
    return first


def _signal(processes: list[int], number: int) -> None:
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _redirect(descriptor: int, path: str, flags: int) -> None:
    """Let a descriptor lead to a file."""
    opened = os.open(path, flags, 0o644)
    os.dup2(opened, descriptor)
    os.close(opened)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
