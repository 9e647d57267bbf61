"""The layout of the official implementation's pickles, as data: objects, modules, and the network's arguments.

Assumed, from the public descriptions of the format: an object is a call of `_reconstruct_persistent_obj` with a table
of `type, version, module_src, class_name, state`; `state` holds the constructor's arguments as `_init_args` and
`_init_kwargs`, and of a module `_parameters`, `_buffers` and `_modules`. `module_src` is never looked at.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from recipe.weights.inert_pickles import PickleError, Record, one_line
from recipe.weights.pickled_tensors import TENSOR_NAMES

OBJECT = "torch_utils.persistence._reconstruct_persistent_obj"
TABLES = ("dnnlib.util.EasyDict", "dnnlib.EasyDict", "collections.OrderedDict")
MODULE_DICT = "torch.nn.modules.container.ModuleDict"
NAMES = TENSOR_NAMES | {
    OBJECT,
    MODULE_DICT,
    *TABLES,
    # What encoders and loss functions hold, which is read and left alone.
    "torch.device",
    "torch.Size",
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
}
NETWORK = "Precond"
MODULES = {NETWORK, "UNet", "Block", "MPConv", "MPFourier"}
MOST_MODULES = 20_000  # the largest published network has about 400


@dataclass(frozen=True)
class Published:
    """An object of the official implementation.

    Attributes:
        kind: name of its class.
        state: its attributes.
    """

    kind: str
    state: Mapping[object, object]

    def arguments(self, names: tuple[str, ...]) -> dict[str, Any]:
        """What its constructor got, by name; `names` are those of its first parameters. Raises PickleError."""
        given, named = self.state.get("_init_args", ()), table(self.state.get("_init_kwargs", {}))
        if not isinstance(given, tuple | list) or len(given) > len(names):
            raise PickleError(f"arguments of {self.kind} that it does not take")
        arguments = dict(zip(names, given, strict=False))
        for name, value in ({} if named is None else named).items():
            if not isinstance(name, str) or name in arguments:
                raise PickleError(f"arguments of {self.kind} that it does not take")
            arguments[name] = value
        return arguments


def table(value: object) -> Mapping[object, object] | None:
    """The entries of a dictionary of any kind; None if it is none."""
    if isinstance(value, Record) and value.name in TABLES:
        return value.entries
    return value if isinstance(value, dict) else None


def published(value: object) -> Published | None:
    """The object that a record stands for; None if it is none. Raises PickleError if it is one that is damaged."""
    if not isinstance(value, Record) or value.name != OBJECT:
        return None
    meta = table(value.arguments[0]) if len(value.arguments) == 1 else None
    kind, state = (None, None) if meta is None else (meta.get("class_name"), table(meta.get("state")))
    if meta is None or meta.get("type") != "class" or not isinstance(kind, str) or state is None:
        raise PickleError("an object without its class or its attributes")
    return Published(one_line(kind), state)


@dataclass
class _Walk:
    """What has been seen of a tree of modules: each stands in it once, so that it neither holds itself nor grows."""

    seen: set[int] = field(default_factory=set)

    def enter(self, value: object, path: str) -> Mapping[object, object]:
        """Attributes of the module at `path`."""
        if id(value) in self.seen or len(self.seen) >= MOST_MODULES or path.count(".") > 10:
            raise PickleError("a network whose modules hold each other")
        self.seen.add(id(value))
        if isinstance(value, Record) and value.name == MODULE_DICT:
            state = table(value.state)
            if state is not None:
                return state
        module = published(value)
        if module is None:
            raise PickleError(f"{one_line(path)}, which is no module")
        if module.kind not in MODULES:
            raise PickleError(f"{one_line(path)} of class {module.kind}, which no network of EDM2 has")
        return module.state


def named_tensors(module: object) -> Iterator[tuple[str, object]]:
    """Names and records of a network's parameters and buffers, as its state dict has them. Raises PickleError."""
    walk = _Walk()
    pending: list[tuple[str, object]] = [("", module)]
    while pending:
        prefix, value = pending.pop()
        state = walk.enter(value, prefix.removesuffix("."))
        left_out = state.get("_non_persistent_buffers_set", set())
        for holder in ("_parameters", "_buffers"):
            for name, tensor in _entries(state, holder):
                if tensor is not None and not (isinstance(left_out, set) and name in left_out):
                    yield f"{prefix}{name}", tensor
        pending += [(f"{prefix}{name}.", child) for name, child in _entries(state, "_modules") if child is not None]


def _entries(state: Mapping[object, object], holder: str) -> list[tuple[str, object]]:
    entries = table(state.get(holder, {}))
    if entries is None or not all(isinstance(name, str) for name in entries):
        raise PickleError(f"{holder} that are no table")
    return [(one_line(name), value) for name, value in entries.items()]
