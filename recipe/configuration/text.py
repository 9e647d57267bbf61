"""From the text of a YAML file or of a `key=value` to plain values, each read as what its key takes.

YAML guesses types: it makes 010 the number 8, a run called 20261126 a number, NO a truth value, 1:30 the number 90. The
schema knows better: where a key takes text, text without quotes is that text; where it takes a number it must be
written as one (`notation.py`), and else stays text, which the schema refuses.
"""

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from recipe.configuration.keys import Section, find
from recipe.configuration.schema import Config
from recipe.configuration.values import is_path
from recipe.notation import number, whole

NULLS = ("", "null", "Null", "NULL", "~")
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
MOST_VALUES = 100_000  # of a file: aliases of aliases can stand for more than any memory holds


@dataclass(frozen=True)
class Takes:
    """What a key takes: types of its values, of the items of its lists, and whether its text is a path."""

    types: frozenset[Any] = frozenset()
    items: "Takes | None" = None
    section: type[Section] | None = None
    path: bool = False

    @property
    def text_alone(self) -> bool:
        """Text or nothing, but no number, list, section or truth value."""
        return str in self.types and self.types <= {str, NoneType}


def taken_by(annotation: Any, metadata: Sequence[Any] = ()) -> Takes:
    """What a declared type takes; `metadata` are notes of pydantic's that it has kept elsewhere."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return taken_by(arguments[0], [*metadata, *arguments[1:]])
    if origin in (Union, UnionType):
        parts = [taken_by(part, metadata) for part in arguments]
        return Takes(
            frozenset[Any]().union(*(part.types for part in parts)),
            next((part.items for part in parts if part.items is not None), None),
            next((part.section for part in parts if part.section is not None), None),
            any(part.path for part in parts),
        )
    if origin is Literal:
        return Takes(frozenset(type(value) for value in arguments))
    if origin is list:
        return Takes(frozenset({list}), taken_by(arguments[0]))
    section = annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None
    return Takes(frozenset({annotation}), section=section, path=is_path(metadata))


def taken(key: str) -> Takes:
    """What the key of that dotted name takes; nothing known of a key that is not in the schema."""
    field = find(Config, key)
    return Takes() if field is None else taken_by(field.annotation, field.metadata)


def plain(text: str, takes: Takes) -> object:
    """The value of text without quotes, of a key that takes such values; text that is none of them stays text."""
    if text in NULLS and not (text == "~" and takes.path):
        return None
    if takes.text_alone or "${" in text:
        return text
    if bool in takes.types and text.lower() in BOOLEANS:
        return BOOLEANS[text.lower()]
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if int in takes.types and float not in takes.types and (found := whole(text)) is not None:
        return found
    found = number(text)
    return text if found is None else found


def decoded(content: bytes) -> str:
    """The text of a file: UTF-8, or UTF-16 with the mark at its begin that some editors and shells of Windows write."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    return content.decode("utf-8-sig")


_Base: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


class _Loader(_Base):
    """Composes nodes and guesses no types."""


_MERGE = "tag:yaml.org,2002:merge"
_Loader.add_implicit_resolver(_MERGE, re.compile("<<"), ["<"])
_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "seq", "map")} | {_MERGE}


def read_tree(text: str) -> object:
    """The values in a YAML text whose top is the configuration. Raises yaml.YAMLError."""
    node = yaml.compose(text, _Loader)
    return None if node is None else _Values().of(node, Takes(section=Config))


def read_value(text: str, takes: Takes) -> object:
    """The value in the YAML text after `key=`. Raises yaml.YAMLError.

    Text that a key takes needs no quotes and knows no comments, as a shell has dealt with both.
    """
    if takes.text_alone and text.strip()[:1] not in ("'", '"'):
        return plain(text.strip(), takes)
    node = yaml.compose(text, _Loader)
    return None if node is None else _Values().of(node, takes)


class _Values:
    """The values of nodes; counts them."""

    def __init__(self) -> None:
        self.count = 0
        self.around: list[yaml.Node] = []

    def of(self, node: yaml.Node, takes: Takes) -> object:
        self.count += 1
        if node.tag not in _TAGS:
            raise _wrong(node, f"the tag {node.tag} has no meaning here")
        if node in self.around or self.count > MOST_VALUES:
            raise _wrong(node, f"its aliases make a circle, or more than {MOST_VALUES} values")
        if isinstance(node, yaml.ScalarNode):
            return node.value if node.style else plain(node.value, takes)
        self.around.append(node)
        if isinstance(node, yaml.SequenceNode):
            found: object = [self.of(item, takes.items or Takes()) for item in node.value]
        else:
            assert isinstance(node, yaml.MappingNode)
            found = self.mapping(node, takes.section or (takes.items or Takes()).section)
        self.around.pop()
        return found

    def mapping(self, node: yaml.MappingNode, section: type[Section] | None) -> dict[str, object]:
        keys: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _wrong(key, "a key must be a word")
            if key.value in keys and key.tag != _MERGE:
                raise _wrong(key, f"found duplicate key {key.value}")
            keys.add(key.value)
        yaml.SafeLoader("").flatten_mapping(node)
        fields = {} if section is None else section.model_fields
        found = {}
        for key, value in node.value:
            field = fields.get(key.value)
            takes = Takes() if field is None else taken_by(field.annotation, field.metadata)
            found[key.value] = self.of(value, takes)
        return found


def _wrong(node: yaml.Node, what: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, what, node.start_mark)
