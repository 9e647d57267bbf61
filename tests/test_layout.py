"""The house rules: what lies where, who imports whom, and names that would shadow a library."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from commands import ROOT

TOP_LEVEL = {
    "recipe", "yamls", "launch", "tests", "docs", "Dockerfile", "pyproject.toml", "README.md", "LICENSE",
    "requirements.lock",
}  # fmt: skip
FLOORS = ["commands", "training", "preparation", "storage", "edm2"]  # each imports from itself and those after it
SCHEMA = {"recipe.config", "recipe.config_reader"}  # what commands hand to training
HEAVY = {"composer", "streaming", "omegaconf", "boto3", "pydantic"}


def tracked(*patterns: str) -> list[Path]:
    """Files of the project, tracked or new, that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return [ROOT / name for name in names if (ROOT / name).exists()]


def imports(path: Path) -> set[str]:
    """Dotted names that a module imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def floor(module: str) -> int:
    part = module.split(".")[1] if "." in module else ""
    return FLOORS.index(part) if part in FLOORS else 0


MODULES = [path for path in tracked("recipe/*.py") if path.name != "__init__.py"]


def test_nothing_else_at_the_top():
    names = {path.relative_to(ROOT).parts[0] for path in tracked()}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path: Path):
    own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    upward = {name for name in imports(path) if name.startswith("recipe.") and floor(name) < floor(own)}
    assert not upward - (SCHEMA if floor(own) == FLOORS.index("training") else set())
    if floor(own) == FLOORS.index("edm2"):
        assert not {name.split(".")[0] for name in imports(path)} & HEAVY


def test_no_file_beside_the_commands_shadows_a_library():
    """`composer recipe/train.py` puts recipe/ first on sys.path, so that recipe/copy.py would become `import copy`."""
    names = {path.stem for path in (ROOT / "recipe").iterdir() if not path.name.startswith("_")}
    installed = set(importlib.metadata.packages_distributions()) - {"recipe"}
    assert not names & (set(sys.stdlib_module_names) | installed)


def test_files_are_short():
    long = {str(path.relative_to(ROOT)) for path in MODULES if len(path.read_text().splitlines()) > 300}
    assert not long


def test_lock_has_exact_versions_with_hashes_and_no_address():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    entries = re.split(r"\n(?=\S)", text.strip())
    assert len(entries) > 100
    for entry in entries:
        assert re.match(r"[\w.-]+==[\w.!+-]+", entry), entry.splitlines()[0]
        assert "--hash=sha256:" in entry, entry.splitlines()[0]
    for pinned in ("torch==2.7.0", "torchvision==0.22.0", "mosaicml==0.32.1", "mosaicml-streaming==0.13.0"):
        assert f"\n{pinned} " in text


def test_scripts_can_be_run():
    for path in [*(ROOT / "launch").glob("*.sh"), ROOT / ".ci" / "run"]:
        assert os.access(path, os.X_OK), path


def test_readme_maps_every_file():
    readme = (ROOT / "README.md").read_text()
    missing = [path.name for path in MODULES if f"`{path.name}`" not in readme and f"/{path.name}`" not in readme]
    assert not missing


def test_continuous_integration_runs_the_readmes_test_command():
    assert "./launch/test.sh" in (ROOT / ".ci" / "run").read_text()
    assert "./launch/test.sh" in (ROOT / "README.md").read_text()
