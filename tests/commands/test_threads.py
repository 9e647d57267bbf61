"""How many processor threads a command uses, and how they wait."""

import os
import re
import subprocess
import sys

import pytest

from helpers.commands import ROOT
from recipe.threads import SPINS, set_thread_defaults

PROCESSORS = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": SPINS}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {}),
        ({"GOMP_SPINCOUNT": "7"}, {}),
        ({"LOCAL_WORLD_SIZE": "1"}, {"GOMP_SPINCOUNT": SPINS}),
        ({"LOCAL_WORLD_SIZE": "2"}, {"GOMP_SPINCOUNT": SPINS, "OMP_NUM_THREADS": str(max(1, PROCESSORS // 2))}),
        ({"LOCAL_WORLD_SIZE": "1000"}, {"GOMP_SPINCOUNT": SPINS, "OMP_NUM_THREADS": "1"}),
        ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "5"}, {"GOMP_SPINCOUNT": SPINS}),
        ({"LOCAL_WORLD_SIZE": "two"}, {"GOMP_SPINCOUNT": SPINS}),
    ],
)
def test_sets_what_the_user_left_open(user: dict[str, str], expected: dict[str, str]):
    environment = dict(user)
    set_thread_defaults(environment)
    assert environment == user | expected


@pytest.mark.parametrize("command", sorted(path.name for path in (ROOT / "recipe").glob("*.py")))
def test_a_command_sets_it_before_torch_is_loaded(command: str):
    """The first import of each that is not of the standard library is of the package."""
    modules = re.findall(r"^(?:import|from) (\w+)", (ROOT / "recipe" / command).read_text(), re.MULTILINE)
    others = [module for module in modules if module not in sys.stdlib_module_names]
    assert others == [] or others[0] == "recipe" or "torch" not in others


def test_torch_reads_it():
    """Not only set in the environment of the process, but read by OpenMP when torch is loaded."""
    code = "import recipe, torch; torch.ones(8) @ torch.ones(8, 8)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", "LOCAL_WORLD_SIZE": "1000"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert f"GOMP_SPINCOUNT = '{SPINS}'" in done.stderr
    assert re.search(r"OMP_NUM_THREADS\s*=\s*'1'", done.stderr)
