"""Reads a pickle as data: nothing that it names is looked up, imported, called or given attributes.

A pickle is a program for a small machine with a stack, which Python's `pickletools` decodes without running it. The
machine here knows the operations that data need. A name in the file stays a `Name`, what the file would make by
calling it becomes a `Record` of the name and the arguments, and whoever reads the result decides what these mean. So
source code inside a pickle is text like any other.
"""

import pickletools
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Any, Protocol

MOST_OPERATIONS = 500_000  # a published network needs about 30,000; a hostile file must not take minutes
LARGEST_KEY = 2**31  # of whole numbers in dictionaries: larger ones can be chosen to collide


class PickleError(Exception):
    """A pickle that is damaged or asks for what data need not; the message says what, in one line."""


class ForeignName(PickleError):
    """A name that the reader did not allow."""


class Stream(Protocol):
    """What pickles are read from: bytes in memory, or a file mapped into it, which never reads more than there is."""

    def read(self, length: int, /) -> bytes: ...
    def readline(self) -> bytes: ...
    def tell(self) -> int: ...


@dataclass(frozen=True)
class Name:
    """A name of the file, "module.name"."""

    text: str


@dataclass(eq=False)
class Record:
    """What the file would make by a call.

    Attributes:
        name: of what it would call; "" = what a persistent identifier stands for.
        arguments: of the call.
        state: what the file would set it to afterwards; None = nothing.
        entries: what the file would put into it as into a dictionary.
    """

    name: str
    arguments: tuple[object, ...]
    state: object = None
    entries: dict[object, object] = field(default_factory=dict)


def read_pickle(stream: Stream, allowed: Container[str]) -> object:
    """The object of one pickle; the stream stands behind it afterwards.

    Args:
        allowed: names that the pickle may mention.

    Returns:
        Numbers, text, bytes, None, lists, tuples, sets and dictionaries of such, `Name`s and `Record`s. It may hold
        itself, and the same object many times: follow it with care.

    Raises:
        ForeignName: it mentions another name.
        PickleError: it is damaged, or has operations that data do not need.
    """
    machine = _Machine(allowed)
    try:
        for count, (operation, argument, _) in enumerate(pickletools.genops(stream)):  # pyright: ignore[reportArgumentType]
            if count >= MOST_OPERATIONS:
                raise PickleError(f"more than {MOST_OPERATIONS} operations")
            if operation.name in _PUSHED:
                machine.stack.append(argument)
            elif operation.name in _ACTIONS:
                _ACTIONS[operation.name](machine, argument)
            elif operation.name == "STOP":
                return machine.result()
            elif operation.name not in _IDLE:
                raise PickleError(f"the operation {operation.name}")
    except PickleError:
        raise
    except Exception as error:  # garbage can raise anything: it is refused all the same
        raise PickleError(f"{type(error).__name__}: {one_line(error)}") from None
    raise PickleError("no end")


def one_line(value: object) -> str:
    """Text of a foreign value for a message: short, on one line, without control characters."""
    text = "".join(letter if letter.isprintable() else "?" for letter in str(value)[:200])
    return text[:100] + ("..." if len(text) > 100 else "")


class _Machine:
    """The stack, what marks have set aside below it, and the memory of one pickle."""

    def __init__(self, allowed: Container[str]):
        self.allowed = allowed
        self.stack: list[object] = []
        self.below: list[list[object]] = []
        self.memory: dict[int, object] = {}

    def result(self) -> object:
        if len(self.stack) != 1 or self.below:
            raise PickleError("an end amid its objects")
        return self.stack[0]

    def since_mark(self) -> list[object]:
        """Take what lies above the last mark."""
        taken, self.stack = self.stack, self.below.pop()
        return taken

    def mark(self, _: object) -> None:
        self.below.append(self.stack)
        self.stack = []

    def name(self, argument: str) -> None:
        self.push_name(*argument.split(" ", 1))

    def stack_name(self, _: object) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push_name(module, name)

    def push_name(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError("a name that is no text")
        if f"{module}.{name}" not in self.allowed:
            raise ForeignName(one_line(f"{module}.{name}"))
        self.stack.append(Name(f"{module}.{name}"))

    def call(self, _: object) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if not isinstance(name, Name) or not isinstance(arguments, tuple):
            raise PickleError("a call of what is no name")
        self.stack.append(Record(name.text, arguments))

    def identifier(self, _: object) -> None:
        self.stack.append(Record("", (self.stack.pop(),)))

    def set_state(self, _: object) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, Record) or target.state is not None:
            raise PickleError("attributes for what can have none")
        target.state = state

    def set_items(self, _: object) -> None:
        items = self.since_mark()
        self.add_to_dictionary(items)

    def set_item(self, _: object) -> None:
        items, self.stack = self.stack[-2:], self.stack[:-2]
        self.add_to_dictionary(items)

    def add_to_dictionary(self, items: list[object]) -> None:
        target = self.stack[-1]
        entries = target.entries if isinstance(target, Record) else target
        if not isinstance(entries, dict) or len(items) % 2:
            raise PickleError("entries for what can have none")
        for key, value in zip(items[::2], items[1::2], strict=True):
            entries[_checked_key(key)] = value

    def add_to_set(self, _: object) -> None:
        items = self.since_mark()
        target = self.stack[-1]
        if not isinstance(target, set):
            raise PickleError("members for what can have none")
        target.update(map(_checked_key, items))

    def append(self, _: object) -> None:
        self.extend([self.stack.pop()])

    def append_all(self, _: object) -> None:
        self.extend(self.since_mark())

    def extend(self, items: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise PickleError("elements for what can have none")
        target += items

    def tuple_since_mark(self, _: object) -> None:
        taken = tuple(self.since_mark())
        self.stack.append(taken)

    def tuple_of(self, length: int) -> None:
        if len(self.stack) < length:
            raise PickleError("a tuple of what is not there")
        self.stack[-length:] = [tuple(self.stack[-length:])]

    def remember(self, index: int | None) -> None:
        self.memory[len(self.memory) if index is None else index] = self.stack[-1]

    def recall(self, index: int) -> None:
        self.stack.append(self.memory[index])


def _checked_key(key: object) -> object:
    """Text and small whole numbers: the hash of nested tuples can take for ever."""
    if isinstance(key, str) or (isinstance(key, int) and abs(key) < LARGEST_KEY):
        return key
    raise PickleError(f"a key of type {type(key).__name__}")


_IDLE = ("PROTO", "FRAME")
_PUSHED = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_SET": lambda machine, _: machine.stack.append(set()),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "TUPLE": _Machine.tuple_since_mark,
    "MARK": _Machine.mark,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.stack_name,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BINPERSID": _Machine.identifier,
    "BUILD": _Machine.set_state,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.append_all,
    "ADDITEMS": _Machine.add_to_set,
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "MEMOIZE": _Machine.remember,
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
}
