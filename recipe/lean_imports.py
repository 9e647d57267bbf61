"""Keeps a command from loading for seconds what libraries load in passing and nobody here uses.

torchmetrics, which Composer imports, loads transformers, SciPy's signal processing and matplotlib for metrics of text
and sound; Composer loads transformers, and with it scikit-learn, for two of its algorithms, and a client of its makers'
cluster; streaming loads transformers for two types of batches, and tokenizers for its examples of data sets. Together
that is more than half of a command's start. The libraries offer no switch, so their imports are met on the way, and in
commands alone: a program that imports `recipe` finds them whole.
"""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

UNUSED = {"matplotlib", "scipy", "transformers"}
"""Packages that torchmetrics finds not installed; whoever imports them gets them."""


def import_less() -> None:
    """From now on this process imports less of libraries. To be called before torch is imported."""
    sys.meta_path.insert(0, _Finder())


def _hide_unused(module: ModuleType) -> None:
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


def _leave_as_it_is(module: ModuleType) -> None:
    pass


def _read_processor(module: ModuleType) -> None:
    """Composer notes the processor's name; the library measures it in a process of its own, which takes a second."""

    def get_cpu_info() -> dict[str, str]:
        with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() == "model name":
                    return {"brand_raw": value.strip()}
        return {}

    module.get_cpu_info = get_cpu_info  # pyright: ignore[reportAttributeAccessIssue]


def _on_its_platform() -> bool:
    return os.environ.get("MOSAICML_PLATFORM", "").lower() == "true"


@contextlib.contextmanager
def _without_transformers() -> Iterator[None]:
    """Meanwhile, unless it is there already, transformers seems to hold nothing but two types that no batch has."""
    if "transformers" in sys.modules:
        yield
        return
    held = {
        "transformers": (),
        "transformers.feature_extraction_utils": ("BatchFeature",),
        "transformers.tokenization_utils_base": ("BatchEncoding",),
    }
    for name, types in held.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update({type_: type(type_, (), {}) for type_ in types})
    try:
        yield
    finally:
        for name in held:
            del sys.modules[name]


CHANGED: dict[str, Callable[[ModuleType], None]] = {
    "composer.algorithms": _leave_as_it_is,
    "lightning_utilities.core.imports": _hide_unused,
    "streaming.base.dataloader": _leave_as_it_is,
}
"""Modules that are changed as soon as they are loaded, and see no transformers while they are."""
MADE: dict[str, Callable[[ModuleType], None]] = {
    "cpuinfo": _read_processor,
    "mcli": _leave_as_it_is,
    "streaming.multimodal": _leave_as_it_is,
    "streaming.text": _leave_as_it_is,
    "streaming.vision": _leave_as_it_is,
}
"""Modules that are made instead of loaded: streaming's examples, and the client of Composer's cluster off it."""


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in MADE and not (fullname == "mcli" and _on_its_platform()):
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
            with _without_transformers():
                self.loader.exec_module(module)
        self.change(module)
