"""Keeps a command from loading for seconds what libraries load in passing and nobody here uses.

torchmetrics, which Composer imports, loads transformers, SciPy's signal processing and matplotlib for metrics of text
and sound; streaming loads tokenizers for its examples of data sets. Together that is a quarter to a half of a command's
start. The libraries offer no switch, so their imports are met on the way, and in commands alone: a program that imports
`recipe` finds torchmetrics and streaming whole.
"""

import re
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

UNUSED = {"matplotlib", "scipy", "transformers"}
"""Packages that torchmetrics is told are not installed; whoever imports them gets them."""


def import_less() -> None:
    """From now on this process imports less of libraries. To be called before torch is imported."""
    sys.meta_path.insert(0, _Finder())


def _tell_unused(module: ModuleType) -> None:
    """Change what torchmetrics asks for installed packages: `package_available(name)`, `RequirementCache(text)`."""
    available, requirement = module.package_available, module.RequirementCache

    def is_available(name: str) -> bool:
        return name not in UNUSED and available(name)

    def asked(text: str = "", *more: str, **named: str) -> object:
        return False if _named(text) & UNUSED else requirement(text, *more, **named)

    vars(module).update(package_available=is_available, RequirementCache=asked)


def _named(requirement: str) -> set[str]:
    """scipy>=1.8.0 -> {"scipy"}"""
    return set(re.findall(r"^[\w.-]+", requirement))


def _leave_empty(module: ModuleType) -> None:
    pass


CHANGED: dict[str, Callable[[ModuleType], None]] = {"lightning_utilities.core.imports": _tell_unused}
"""Modules that are changed as soon as they are loaded."""
MADE: dict[str, Callable[[ModuleType], None]] = {
    "streaming.multimodal": _leave_empty,
    "streaming.text": _leave_empty,
    "streaming.vision": _leave_empty,
}
"""Modules that are made instead of loaded: streaming's examples of data sets."""


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in MADE:
            return ModuleSpec(fullname, _Changing(None, MADE[fullname]))
        spec = PathFinder.find_spec(fullname, path) if fullname in CHANGED else None
        if spec is not None:
            spec.loader = _Changing(spec.loader, CHANGED[fullname])
        return spec


class _Changing(Loader):
    """Loads a module, if there is something to load, and changes it."""

    def __init__(self, loader: Loader | None, change: Callable[[ModuleType], None]):
        self.loader, self.change = loader, change

    def exec_module(self, module: ModuleType) -> None:
        if self.loader is not None:
            self.loader.exec_module(module)
        self.change(module)
