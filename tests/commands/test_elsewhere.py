"""launch/test_elsewhere.sh and launch/without_root.sh: what their parts run in, and that none is left out silently."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.commands import ROOT, run

ELSEWHERE, WITHOUT_ROOT = str(ROOT / "launch" / "test_elsewhere.sh"), str(ROOT / "launch" / "without_root.sh")
VERSIONS = ("3.10", "3.11", "3.12")
PYTHON = """#!/bin/sh
case "$2" in
  pytest) echo "tests: processor ${{ONEDNN_MAX_CPU_ISA:-any}}, user $(id -u)"; exit {status} ;;
  *) exec {python} "$@" ;;
esac
"""


def as_stranger(*command: str) -> list[str]:
    """The lines that a command prints in without_root.sh; skips where root may not change its user."""
    done = run([WITHOUT_ROOT, *command], env={"VENV": sys.prefix})
    if done.returncode == 125:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_stranger_is_not_root_and_writes_nowhere_but_to_its_scratch():
    script = 'id -u; umask; touch "$HOME/x" 2>/dev/null || echo refused; touch "$TMPDIR/x"; echo "$TMPDIR"; date +%z'
    user, umask, home, scratch, zone = as_stranger("sh", "-c", script)
    assert user != "0" and (umask, home, zone) == ("0077", "refused", "+1400")
    assert not Path(scratch).exists(), "scratch is left"


def test_a_stranger_runs_this_checkout():
    (found,) = as_stranger("python", "-c", "import recipe; print(recipe.__file__)")
    assert Path(found) == ROOT / "recipe" / "__init__.py"


UNREADABLE = """
from pathlib import Path
import os
from recipe.evaluation.statistics_files import open_reference
from recipe.weights.snapshots import SnapshotReader

path = Path(os.environ["TMPDIR"], "x.safetensors")
path.touch(mode=0)
for read in (lambda: SnapshotReader(path).__enter__(), lambda: open_reference(str(path), "inception")):
    try:
        read()
    except ValueError as error:
        print(str(error).removeprefix(str(path)))
"""


def test_who_may_not_read_a_file_is_not_told_that_it_is_missing():
    snapshot, reference = as_stranger("python", "-c", UNREADABLE)
    assert snapshot == ": may not be read by this user; have its owner change its permissions"
    assert reference == ": may not be read by this user; change its permissions"


def test_status_of_the_command_is_kept():
    as_stranger("true")
    assert run([WITHOUT_ROOT, "sh", "-c", "exit 7"], env={"VENV": sys.prefix}).returncode == 7


def elsewhere(folder: Path, status: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    """The script where no other Python is found, with a pytest that says where it runs and ends with `status`."""
    (folder / "bin").mkdir(mode=0o755)
    folder.chmod(0o755)
    programs = {"python": PYTHON.format(python=sys.executable, status=status)}
    programs |= {f"python{version}": "#!/bin/sh\nexit 1\n" for version in VERSIONS}  # nothing is installed here
    for name, text in programs.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    want = hashlib.sha256((ROOT / "requirements.lock").read_bytes() + (ROOT / "pyproject.toml").read_bytes())
    (folder / ".installed").write_text(f"{want.hexdigest()}  -\n")
    settings = {"VENV": str(folder), "OTHER_VENVS": str(folder), "PYENV_ROOT": str(folder)}
    settings["PATH"] = f"{folder}/bin:{os.environ['PATH']}"
    return run([ELSEWHERE], env=settings | {"CI": ""} | env)


@pytest.mark.parametrize(("ci", "status"), [("", 0), ("true", 1)])
def test_a_part_that_cannot_run_is_named(tmp_path: Path, ci: str, status: int):
    done = elsewhere(tmp_path, CI=ci)
    for version in VERSIONS:
        if not sys.version.startswith(version):
            assert f"== not run: Python {version}: no python{version} with the venv module is on PATH" in done.stdout
    assert done.returncode == status, done.stdout + done.stderr
    assert "tests: processor AVX2" in done.stdout
    assert os.getuid() != 0 or "tests: processor any, user 54321" in done.stdout


def test_a_part_that_fails_fails_the_script_and_the_others_run(tmp_path: Path):
    done = elsewhere(tmp_path, status=3)
    assert done.returncode == 1
    assert "== failed: AVX2 alone" in done.stdout and "== failed: not root, home folder read-only" in done.stdout
