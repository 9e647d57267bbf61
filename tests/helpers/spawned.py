"""What tests let run in spawned processes, which import it anew: a library brings a package `tests` of its own."""

import os
import time
from typing import Any

from recipe.storage.addresses import open_place
from recipe.storage.ownership import OwnedError, Ownership


def claim_and_wait(address: str, said: Any) -> None:
    Ownership(open_place(address))
    said.put(os.getpid())
    time.sleep(60)


def claim(address: str, gate: Any, said: Any) -> None:
    place = open_place(address)
    gate.wait()
    try:
        Ownership(place)
        said.put(True)
    except OwnedError:
        said.put(False)
    time.sleep(3)  # alive while the others try


def wait_as_a_worker(ready: Any) -> None:
    from recipe.data.loader import end_only_with_rank  # takes seconds, which the others need not wait

    end_only_with_rank(0)
    ready.set()
    time.sleep(60)
