"""How many processor threads torch has and how they wait: OpenMP reads both from the environment as torch is loaded."""

import os
from collections.abc import MutableMapping

from recipe.processors import processors

SPINS = "3000"
"""Turns that a thread of GNU's OpenMP waits before it sleeps (measured in docs/performance.md).

Its own default, 300000, takes the processor from the very thread that is waited for as soon as another program is busy;
with none, threads fall asleep within each operation."""


def set_thread_defaults(environment: MutableMapping[str, str]) -> None:
    """Set what `environment` leaves open. A rank beside others on its machine gets its share of the processors."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & environment.keys():
        environment["GOMP_SPINCOUNT"] = SPINS
    beside = environment.get("LOCAL_WORLD_SIZE", "1")
    ranks = int(beside) if beside.isdecimal() else 1
    share = max(1, processors() // max(1, ranks))
    if ranks > 1 or share < len(os.sched_getaffinity(0)):  # which OpenMP would find by itself
        environment.setdefault("OMP_NUM_THREADS", str(share))
