"""The house rules: what lies where, who imports whom, and names that would shadow a library."""

import ast
import importlib.metadata
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

from helpers.commands import ROOT

TOP_LEVEL = {
    "recipe", "yamls", "launch", "tests", "docs", "Dockerfile", "pyproject.toml", "README.md", "LICENSE",
    "requirements.lock",
}  # fmt: skip
FLOORS = [
    "commands", "benchmarks", "training", "reporting", "evaluation", "preparation", "preparation.sources", "sampling",
    "planning", "weights", "data", "configuration", "storage", "edm2.samplers", "edm2.networks", "edm2", "ranks",
    "interrupts", "terminal", "progress", "command_options", "command_line", "notation", "private_names", "processors",
]  # fmt: skip
"""The folders of recipe/ from top to bottom: each imports from itself and from those after it."""
APART = {"training": "preparation", "preparation": "training"}  # both stand on data/, neither knows the other
GROUND = set(FLOORS[FLOORS.index("ranks") :])
"""Files beside the commands that everybody stands on."""


def tracked(*patterns: str) -> list[Path]:
    """Files of the project, tracked or new, that git does not ignore."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return [ROOT / name for name in names if (ROOT / name).exists()]


def module_of(path: Path) -> str:
    """recipe/edm2/ema.py -> edm2.ema"""
    return ".".join(path.relative_to(ROOT / "recipe").with_suffix("").parts)


MODULES = {module_of(path): path for path in tracked("recipe/*.py") if path.name != "__init__.py"}


def imports(path: Path) -> set[str]:
    """Dotted names that a module imports anywhere in it, also inside functions and for type checking."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in names if name.removeprefix("recipe.") in MODULES}
            found |= modules | ({node.module or ""} if len(modules) < len(names) else set())
    return found


def own_imports(path: Path) -> set[str]:
    """Modules of recipe/ that a module imports, by their names below it."""
    return {name.removeprefix("recipe.") for name in imports(path) if name.startswith("recipe.")}


GRAPH = {module: own_imports(path) for module, path in MODULES.items()}


def folder_of(module: str) -> str:
    if "." not in module:
        return module if module in GROUND else "commands"
    return module.rpartition(".")[0]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Nodes of a circle in the order of its arrows; [] if there is none."""
    finished: set[str] = set()

    def search(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :]
        if node not in finished:
            for target in sorted(graph.get(node, ())):
                if found := search(target, [*path, node]):
                    return found
            finished.add(node)
        return []

    return next((found for node in sorted(graph) if (found := search(node, []))), [])


def test_nothing_else_at_the_top():
    names = {path.relative_to(ROOT).parts[0] for path in tracked()}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL


def test_every_import_is_of_a_module_that_exists():
    assert len(GRAPH) > 80
    assert {target for targets in GRAPH.values() for target in targets} <= MODULES.keys()


def test_no_circles_between_files_or_folders():
    assert circle(GRAPH) == []
    folders: dict[str, set[str]] = {}
    for module, targets in GRAPH.items():
        folder = folder_of(module)
        folders.setdefault(folder, set()).update({folder_of(target) for target in targets} - {folder})
    assert circle(folders) == []
    assert folders.keys() == set(FLOORS)


def test_a_circle_is_found():
    """The check above can fail."""
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


def test_imports_point_downwards():
    upward = [
        f"{module} imports {target}"
        for module, targets in GRAPH.items()
        for target in targets
        if FLOORS.index(folder_of(target)) < FLOORS.index(folder_of(module))
        or folder_of(target).split(".")[0] == APART.get(folder_of(module).split(".")[0])
    ]
    assert upward == []


def test_the_method_stands_on_torch_and_numpy_alone():
    allowed = {"torch", "numpy", "recipe"} | set(sys.stdlib_module_names)
    for module, path in MODULES.items():
        if module.startswith("edm2."):
            assert {name.split(".")[0] for name in imports(path)} <= allowed, module


def test_every_module_says_its_purpose():
    silent = [name for name, path in MODULES.items() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


def test_no_file_beside_the_commands_shadows_a_library():
    """`composer recipe/train.py` puts recipe/ first on sys.path, so that recipe/copy.py would become `import copy`."""
    names = {path.stem for path in (ROOT / "recipe").iterdir() if not path.name.startswith("_")}
    installed = set(importlib.metadata.packages_distributions()) - {"recipe"}
    assert not names & (set(sys.stdlib_module_names) | installed)


def test_files_and_functions_are_short():
    lengths = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert max(lengths.values()) <= 300, max(lengths, key=lambda name: lengths[name])
    assert statistics.median(lengths.values()) <= 120
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert code_lines(node) <= 40, f"{name}.{node.name} has {code_lines(node)} lines"


def test_only_tables_of_constants_are_laid_out_by_hand():
    """`fmt: skip` where a list, a mapping or a set of many short entries would become a column of them."""
    for path in [path for folder in ("recipe", "tests") for path in (ROOT / folder).rglob("*.py")]:
        text = path.read_text()
        tables = {
            node.end_lineno
            for node in ast.parse(text).body
            if isinstance(node, ast.Assign | ast.AnnAssign)
            and isinstance(node.value, ast.List | ast.Tuple | ast.Dict | ast.Set | ast.Call)
        }
        skipped = {number for number, line in enumerate(text.splitlines(), 1) if line.endswith("# fmt: " + "skip")}
        assert skipped <= tables, f"{path}: {sorted(skipped - tables)}"


def code_lines(function: ast.FunctionDef) -> int:
    """Lines of a function without its docstring, which may be as long as it needs."""
    first = function.body[0]
    docstring = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(function) else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


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


def test_continuous_integration_runs_the_readmes_test_command():
    assert "./launch/test.sh" in (ROOT / ".ci" / "run").read_text()
    assert "./launch/test.sh" in (ROOT / "README.md").read_text()
