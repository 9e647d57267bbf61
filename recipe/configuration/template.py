"""Makes the comments of a configuration file from the schema, so that a key's meaning is written once.

    python -m recipe.configuration.template yamls/edm2.yaml [--write]        prints the file, or writes it

Every key of the schema is there, in the schema's order, with the value that the file gives it or else its default. The
keys of an optional section that is off stand below it as comments. The file's header, up to its first key, is kept.
"""

import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Literal, TypeAlias, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from recipe.command_line import exit_with
from recipe.configuration.keys import Section, holds_list, section_in
from recipe.configuration.problems import ConfigError
from recipe.configuration.reader import read_config
from recipe.configuration.schema import Config

COLUMN, WIDTH = 40, 120  # where comments begin, and where lines end
Given: TypeAlias = "Mapping[str, str | Given]"  # a section's keys with their values as written


def render(text: str, schema: type[Section] = Config) -> str:
    """The configuration file `text` with every key of the schema and its comments.

    `text` must be valid YAML, of keys that the schema knows: others are left out.
    """
    header = takewhile(lambda line: not line.strip() or line.startswith("#"), text.splitlines())
    root = yaml.compose(text)
    given = _given(root, text) if isinstance(root, yaml.MappingNode) else {}
    return "\n".join([*header, *_section(schema, given)]) + "\n"


def _given(node: yaml.MappingNode, text: str) -> Given:
    """The values as they are written, so that 1e-8 and 0.10 stay so."""
    given: dict[str, str | Given] = {}
    for key, value in node.value:
        written = text[value.start_mark.index : value.end_mark.index]
        if isinstance(value, yaml.MappingNode):
            given[key.value] = _given(value, text)
        else:
            given[key.value] = written if "\n" not in written else _flow(yaml.safe_load(yaml.serialize(value)))
    return given


def _section(
    section: type[Section], given: Given, first: str = "", indent: str = "", off: bool = False
) -> Iterator[str]:
    """Lines of a section's keys; `first` and `indent` stand before its first key and the others."""
    start = first
    for name, field in section.model_fields.items():
        inner, value = section_in(field), given.get(name)
        if inner is not None and indent == "":
            yield ""
        if inner is not None and (isinstance(value, Mapping) or (value is None and _always_there(field))):
            yield from _lines(f"{start}{name}:", field.description or "")
            yield from _section(inner, value if isinstance(value, Mapping) else {}, f"{indent}  ", f"{indent}  ")
        else:
            value = value if isinstance(value, str) else _default(field, off)
            yield from _lines(f"{start}{name}: {value}", _comment(field, value))
            if inner is not None and yaml.safe_load(value) is None:
                below = f"{indent}  " if off else f"{indent}  # "
                mark = "- " if holds_list(field) else ""
                yield from _section(inner, {}, below + mark, below + " " * len(mark), off=True)
        start = indent


def _always_there(field: FieldInfo) -> bool:
    return field.default is not None and not holds_list(field)


def _comment(field: FieldInfo, value: str) -> str:
    """The key's text, its choices, an example where the value shows none, and the default where it is another."""
    notes = [field.description or ""]
    if get_origin(field.annotation) is Literal:
        notes[0] += f" ({' | '.join(get_args(field.annotation))})"
    example = (field.examples or [None])[0]
    shown, default = yaml.safe_load(value), field.default
    if shown in (None, []) and isinstance(example, str | list) and section_in(field) is None:
        notes.append(f"e.g. {_flow(example)}")
    elif not field.is_required() and default not in (None, []) and _flow(shown) != _flow(default):
        notes.append(f"default: {_flow(default)}")
    return "; ".join(notes)


def _default(field: FieldInfo, off: bool) -> str:
    """The default; of a key without one the example if its section is off, else the mark of a missing value."""
    if not field.is_required():
        return _flow(field.default)
    return _flow((field.examples or [None])[0]) if off else "???"


def _flow(value: object) -> str:
    """A value as YAML on one line."""
    if isinstance(value, float) and value >= 1e6:
        return f"{value:.1e}"
    if isinstance(value, BaseModel):
        value = value.model_dump()
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()


def _lines(head: str, comment: str) -> Iterator[str]:
    """`head` and its comment beside it, or below it if it is too long for that."""
    together = re.sub(r" = |: | \| |e\.g\. ", lambda match: match[0].replace(" ", "\0"), comment)  # not torn apart
    if max(map(len, together.split())) > WIDTH - COLUMN - 4:  # choices that fill more than a line
        together = together.replace("|\0", "| ")
    options = {"subsequent_indent": "  ", "break_on_hyphens": False}
    wrapped = [line.replace("\0", " ") for line in textwrap.wrap(together, WIDTH - COLUMN - 2, **options)]
    if len(head) < COLUMN:
        yield f"{head:<{COLUMN}}# {wrapped.pop(0)}"
    else:
        yield head
    yield from (f"{'':<{COLUMN}}# {line}" for line in wrapped)


def main() -> None:
    names = [argument for argument in sys.argv[1:] if argument != "--write"]
    if len(names) != 1:
        exit_with("template", "give the path of one configuration file, and --write to write it")
    try:
        read_config(names)  # a key that is not in the schema would be lost
    except ConfigError as error:
        exit_with("template", error)
    path = Path(names[0])
    text = render(path.read_text(encoding="utf-8"))
    if "--write" in sys.argv:
        path.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
