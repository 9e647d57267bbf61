"""What a key of the schema says of itself, and how keys are found by their dotted names."""

import inspect
from collections.abc import Iterator
from enum import Enum
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.fields import FieldInfo

from recipe.notation import UNSEEN


class Resume(Enum):
    """Whether a key may have another value when a run goes on than when it began."""

    FREE = "it may: it does not enter the result"
    NAMED = "only if allow_changes names it: it enters the result"
    FIXED = "never: it gives the tensors of a checkpoint their names, shapes or meaning"


FREE, NAMED, FIXED = Resume.FREE, Resume.NAMED, Resume.FIXED


class Section(BaseModel):
    """A group of keys: unknown ones are errors, and so are values of another type than declared."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        arbitrary_types_allowed=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )

    @field_validator("*", mode="before")
    @classmethod
    def given(cls, value: object) -> object:
        """Neither spaces nor `???`, which OmegaConf reads as a string, are a value, nor what ends with them."""
        if isinstance(value, str) and value.strip(UNSEEN) in ("", "???"):
            raise ValueError("must not be blank")
        if isinstance(value, str) and (value != value.strip(UNSEEN) or any(ord(letter) < 32 for letter in value)):
            raise ValueError("must not begin or end with a space, or hold characters that nobody sees")
        return value


def key(default: object, resume: Resume | None, description: str, example: object = None, **rules: Any) -> Any:
    """One key of the schema.

    Args:
        default: its value where nobody sets it; `...` if somebody must.
        resume: whether it may change when a run goes on; None for a section that is always there.
        description: its text, in error messages and in the comments of yamls/edm2.yaml.
        example: what an error suggests; None if the default serves, which null does not.
        rules: bounds, as pydantic's Field has them.
    """
    return Field(
        default,
        description=description,
        examples=[default if example is None else example],
        json_schema_extra={"resume": None if resume is None else resume.name},
        validate_default=True,
        **rules,
    )


def resume_of(field: FieldInfo) -> Resume | None:
    """What a key said of resumed runs, or None if it said nothing."""
    extra = field.json_schema_extra
    name = extra.get("resume") if isinstance(extra, dict) else None
    return Resume[name] if isinstance(name, str) else None


def section_in(field: FieldInfo) -> type[Section] | None:
    """The section that a field holds, also an optional one or a list of them; None for a plain key."""
    return _section(field.annotation)


def holds_list(field: FieldInfo) -> bool:
    """Whether a field is a list, or one that may be null."""
    return any(get_origin(candidate) is list for candidate in (field.annotation, *get_args(field.annotation)))


def find(root: type[Section], name: str) -> FieldInfo | None:
    """The field of a dotted name below `root`, or None. `data.streams.0.local` is a key of the first stream."""
    section: type[Section] | None = root
    field = None
    for part in name.split("."):
        if part.isdigit() and field is not None and section is not None and holds_list(field):
            continue
        field = section.model_fields.get(part) if section else None
        if field is None:
            return None
        section = section_in(field)
    return field


def all_keys(root: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key and section below `root`, by its dotted name."""
    for name, field in root.model_fields.items():
        yield prefix + name, field
        inner = section_in(field)
        if inner:
            yield from all_keys(inner, f"{prefix}{name}.")


def _section(annotation: Any) -> type[Section] | None:
    if inspect.isclass(annotation) and issubclass(annotation, Section):
        return annotation
    inner = (_section(candidate) for candidate in get_args(annotation))
    return next((section for section in inner if section is not None), None)
