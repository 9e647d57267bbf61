"""How many processors a process takes, above all in a container with a limit."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.commands import ROOT
from recipe.processors import processors

MACHINE = len(os.sched_getaffinity(0))
CGROUPS = Path("/sys/fs/cgroup")

CASES: dict[str, tuple[dict[str, str], float]] = {
    "no control groups": ({}, MACHINE),
    "v2 without a limit": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, MACHINE),
    "v2 in a container": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "100000 100000"}, 1),
    "v2, a limit of one and a half": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 2),
    "v2, a limit of a half": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
    "v2, a limit beyond the machine": (
        {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "99900000 100000"},
        MACHINE,
    ),
    "v2, the group above is the narrower one": (
        {
            "proc/self/cgroup": "0::/kubepods/pod1",
            "sys/fs/cgroup/kubepods/cpu.max": "100000 100000",
            "sys/fs/cgroup/kubepods/pod1/cpu.max": "max 100000",
        },
        1,
    ),
    "v1": (
        {
            "proc/self/cgroup": "3:cpuset:/a\n1:cpu,cpuacct:/a\n0::/",
            "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "20000\n",
            "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
        },
        1,
    ),
    "v1 without a limit": (
        {
            "proc/self/cgroup": "1:cpu:/",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        MACHINE,
    ),
    "v1 in a container, whose path is the machine's": (
        {
            "proc/self/cgroup": "1:cpu:/docker/0123",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
        1,
    ),
    "both kinds mounted": (
        {
            "proc/self/cgroup": "1:cpu:/x\n0::/",
            "sys/fs/cgroup/unified/cpu.max": "max 100000",
            "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "100000",
            "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000",
        },
        1,
    ),
    "nonsense": ({"proc/self/cgroup": "0::/\n:\n", "sys/fs/cgroup/cpu.max": "100000 0"}, MACHINE),
}


@pytest.mark.skipif(MACHINE < 2, reason="one processor cannot be limited to fewer")
@pytest.mark.parametrize(("files", "expected"), CASES.values(), ids=CASES)
def test_the_narrowest_limit_counts(files: dict[str, str], expected: int, tmp_path: Path):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert processors(tmp_path) == expected


@contextlib.contextmanager
def limited_group() -> Iterator[Path]:
    """A real control group with one processor's time; skips where this user cannot make one."""
    name = f"edm2-recipe-test-{os.getpid()}"
    if (CGROUPS / "cpu").is_dir():
        group, limits = CGROUPS / "cpu" / name, {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "100000"}
    else:
        group, limits = CGROUPS / name, {"cpu.max": "100000 100000"}
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        for file, text in limits.items():
            (group / file).write_text(text)
        yield group
    finally:
        group.rmdir()


@pytest.mark.skipif(MACHINE < 2, reason="one processor cannot be limited to fewer")
def test_torch_takes_as_many_threads_as_a_real_limit_allows():
    code = "import recipe, torch; print(torch.get_num_threads())"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    with limited_group() as group:
        line = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group), sys.executable, "-c", code]
        done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
