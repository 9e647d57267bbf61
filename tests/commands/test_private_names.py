"""Each private name of a library that the recipe leans on is there, listed, and used."""

import ast
import functools
import importlib
import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import ROOT
from recipe.private_names import NAMES

LIBRARIES = ("torch", "composer", "streaming")
LISTED = {private.name for private in NAMES}
LIST = ROOT / "recipe" / "private_names.py"
FILES = [path for path in sorted((ROOT / "recipe").rglob("*.py")) if path != LIST]
DOCUMENTED = {"_exit", "_replace"}  # of os and of named tuples: they only look private
ATTRIBUTES: dict[str, Callable[[], object]] = {  # of instances, so that no import finds them
    "composer.models.ComposerModel._fsdp_wrap": lambda: (
        "_fsdp_wrap" in inspect.getsource(resolve("composer.distributed.dist_strategy")) or None
    ),
    "concurrent.futures.ThreadPoolExecutor._max_workers": lambda: ThreadPoolExecutor(1)._max_workers,
    **{
        f"streaming.StreamingDataset.{name}": lambda name=name: (
            f"self.{name} = " in inspect.getsource(resolve("streaming.StreamingDataset"))
            or f"self.{name}: " in inspect.getsource(resolve("streaming.StreamingDataset"))
            or None
        )
        for name in ("_shard_states", "_shard_access_times", "_cache_filelock", "_unique_rank_world", "_event")
    },
    "streaming.Stream._downloader": lambda: (
        "self._downloader = " in inspect.getsource(resolve("streaming.Stream")) or None
    ),
    "datasets.Dataset._fingerprint": lambda: resolve("datasets.Dataset").from_dict({"a": [1]})._fingerprint,
}


def resolve(name: str) -> Any:
    """What a dotted name stands for: the longest part of it that is a module, and attributes from there on."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        return functools.reduce(getattr, parts[length:], module)
    raise ModuleNotFoundError(name)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def is_inner(module: str) -> bool:
    """Whether a module of a library is one that its documentation does not offer."""
    parts = module.split(".")
    if parts[0] == "streaming":
        return len(parts) > 1  # the documentation offers what `streaming` itself holds
    depth = {"composer": 2}.get(parts[0], len(parts))
    return len(parts) > depth or any(map(is_private, parts))


def is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def imported(tree: ast.AST) -> set[str]:
    """Dotted names that a file imports from LIBRARIES and that are private, or of an inner module."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
            names = {alias.name for alias in node.names}
            found |= {f"{node.module}.{name}" for name in names if is_inner(node.module or "") or is_private(name)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] in LIBRARIES and "." in alias.name}
    return found


def defined(tree: ast.AST) -> set[str]:
    """Names of functions, classes, variables and attributes of `self` that a file makes."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_name(node.value, "self"):
            found.add(node.attr)
    return found


OWN = set().union(*(defined(ast.parse(path.read_text())) for path in FILES))


def attributes(tree: ast.AST) -> set[str]:
    """Private attributes that a file uses of other people's objects: not made there or inherited in recipe/."""
    here, found = defined(tree), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            inherited = isinstance(node.value, ast.Call) and is_name(node.value.func, "super")
            own = set() if inherited else here | OWN if is_name(node.value, "self") else here
            found |= {node.attr} - own
    return found - DOCUMENTED


def unlisted(source: str) -> set[str]:
    tree = ast.parse(source)
    last = {part for name in LISTED for part in name.split(".")}
    return {name for name in imported(tree) if not any(known.startswith(name) for known in LISTED)} | {
        name for name in attributes(tree) if name not in last
    }


@pytest.mark.parametrize("name", sorted(LISTED))
def test_it_is_there(name: str):
    assert ATTRIBUTES.get(name, lambda: resolve(name))() is not None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "recipe")))
def test_nothing_is_used_that_is_not_listed(path: Path):
    assert unlisted(path.read_text()) == set(), "list it in recipe/private_names.py, with the reason"


def test_each_is_used_and_listed_once():
    text = "".join(path.read_text() for path in FILES)
    assert [name for name in LISTED if name.rpartition(".")[2] not in text] == []
    assert len(LISTED) == len(NAMES)
    assert all(private.reason and private.upgrade for private in NAMES)


@pytest.mark.parametrize(
    "source",
    [
        "from torch._dynamo import config",
        "from torch.nn import _reduction",
        "import torch._inductor.config",
        "from composer.core.engine import Engine",
        "from streaming.base.world import World",
        "import torch\ntorch._foreach_add_(a, b)",
        "class A(B):\n    def _step(self):\n        super()._step()",
        "pool._threads",
    ],
)
def test_the_tests_would_notice(source: str):
    assert unlisted(source)


@pytest.mark.parametrize(
    "source",
    [
        "import torch",
        "from torch.nn import functional",
        "class A:\n    def f(self):\n        self._x = 1\n        return self._x",
    ],
)
def test_what_is_public_or_own_need_not_be_listed(source: str):
    assert not unlisted(source)
