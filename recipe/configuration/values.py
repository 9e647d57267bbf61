"""The kinds of values that keys have, each with the rules that it must keep by itself.

A rule that pydantic has (a bound, a pattern, a choice) is left to it. The others are functions here, which return the
value or raise `Refused`. Rules between several keys are in `rules.py`.
"""

import difflib
import re
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from recipe.configuration.gpus import GPUS
from recipe.configuration.spans import Span
from recipe.edm2.samplers.names import check_restarts
from recipe.notation import home_expanded, unfilled_variable

LONGEST = 12**-0.5  # sigma_rel of a plain average over the whole run (gamma = 0); longer ones do not exist
Whole = TypeVar("Whole", bound="int | str")


class Refused(ValueError):
    """A value that breaks a rule of its own key: how it is shown, the rule, and a fix that suits it."""

    def __init__(self, value: str, rule: str, fix: str):
        super().__init__(rule)
        self.value, self.rule, self.fix = value, rule, fix


def parse_ranks(given: int | str) -> tuple[int, int | None]:
    """(ranks, ranks per node) of `world_size`: 1024 -> (1024, None), "128x8" -> (1024, 8). Raises Refused."""
    match = re.fullmatch(r"([1-9][0-9]*)(?:x([1-9][0-9]*))?", str(given))
    if match is None:
        rule = "must be a number of ranks, or nodes x ranks per node"
        raise Refused(repr(given), rule, "write for example 1024 or 128x8")
    per_node = None if match[2] is None else int(match[2])
    return int(match[1]) * (per_node or 1), per_node


def _ranks(given: Whole) -> Whole:
    parse_ranks(given)
    return given


def _above_zero(span: Span) -> Span:
    if span.value == 0:
        raise Refused(str(span), "must be above 0", "use a multiple of global_batch_size, for example 100ba")
    return span


def _not_in_epochs(span: Span) -> Span:
    if span.unit == "ep":
        raise Refused(str(span), "must be in images or batches, not epochs", "write for example 10M")
    return span


def _distinct_in_names(lengths: list[float]) -> list[float]:
    """Lengths that the names of snapshots, with their 3 decimals, tell apart."""
    if any(round(length, 3) != length for length in lengths):
        near = sorted({min(max(round(length, 3), 0.001), 0.288) for length in lengths})
        rule = "must have at most 3 decimals, as the names of the snapshots"
        raise Refused(str(lengths), rule, f"use {near}")
    if len(set(lengths)) < len(lengths):
        raise Refused(str(lengths), "must not repeat a length", f"use {sorted(set(lengths))}")
    return lengths


def _some_kept(number: int) -> int:
    if number == 0:
        raise Refused("0", "must be -1 (all) or at least 1", "use -1")
    return number


def _one_to_resume_from(number: int) -> int:
    if number == 0:
        raise Refused("0", "must be -1 (all) or at least 1: nothing can resume without one", "use 2")
    return number


def _size(limit: str) -> str:
    if not re.fullmatch(r"(0|[1-9][0-9]*)(\.[0-9]+)?(b|kb|mb|gb|tb|pb)", limit.lower()):
        raise Refused(repr(limit), "must be a size in b, kb, mb, gb, tb or pb", "write for example 200gb")
    return limit


def _path(text: str) -> str:
    """A local path or an address, `~` at its begin filled in."""
    if text == "~":
        raise Refused("~", "could mean null, as in YAML, or your home folder", "write null, or ~/")
    variable = unfilled_variable(text)
    if variable is not None:
        rule = f"names the variable {variable}, but only YAML's references are filled in"
        raise Refused(text, rule, f"write ${{oc.env:{variable}}}")
    expanded = home_expanded(text)
    if expanded is None:
        rule = f"begins with {text.split('/')[0]}, whose home folder is not known"
        raise Refused(text, rule, f"write the whole path, or ./{text} for a folder of that name")
    return expanded


def is_path(metadata: Sequence[Any]) -> bool:
    """Whether notes of pydantic's make some text a path."""
    return any(isinstance(note, AfterValidator) and note.func is _path for note in metadata)


def _without_placeholders(path: str) -> str:
    if "{run_name}" in path:
        rule = "cannot hold {run_name}, which is filled in in save_folder only"
        raise Refused(path, rule, "write ${run_name}")
    return path


def _only_run_name(path: str) -> str:
    others = [name for name in re.findall(r"\{[^{}]*\}", path) if name != "{run_name}"]
    if others:
        raise Refused(path, f"holds {others[0]}, but only {{run_name}} is filled in", "use {run_name}, or ${key}")
    return path


def _local(path: str) -> str:
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", path):
        raise Refused(path, "must be a folder of this machine", "name one; an address of shards belongs in remote")
    return path


def _level_or_resolution(given: Whole) -> Whole:
    right = re.fullmatch(r"level(0|[1-9][0-9]?)", given) if isinstance(given, str) else given > 0
    if not right:
        rule = "must be a resolution such as 16, or a level such as level1"
        raise Refused(repr(given), rule, "write for example [16, 8] or [level1, level2]; level0 is img_resolution")
    return given


def _local_or_s3(folder: str) -> str:
    scheme, separator, rest = folder.partition("://")
    if separator and (scheme != "s3" or not rest.strip("/")):
        fix = "write for example s3://bucket/runs/{run_name}; mount other stores as a folder"
        raise Refused(folder, "must be a local folder or s3://bucket/folder", fix)
    return folder


def _lo_below_hi(ends: list[float]) -> list[float]:
    if len(ends) != 2 or not 0 <= ends[0] < ends[1]:
        raise Refused(str(ends), "must be two noise levels, 0 <= lo < hi", "write for example [0.28, 2.9]")
    return ends


def _restarts(given: list[list[float]]) -> list[list[float]]:
    try:
        check_restarts(given)
    except ValueError as error:
        raise Refused(str(given), str(error), "write for example [[3, 2, 0.06, 0.3]]") from None
    return given


def _known_gpu(name: str) -> str:
    if name not in GPUS:
        given = name.upper()
        near = [known for known in GPUS if known.split("-")[0] == given.split("-")[0]]
        near = near or difflib.get_close_matches(given, GPUS, n=1)
        fix = f"did you mean {' or '.join(near)}?" if near else "name one with less memory"
        raise Refused(repr(name), f"must be one of {', '.join(GPUS)}", fix)
    return name


Address = Annotated[str, Field(min_length=1), AfterValidator(_path), AfterValidator(_without_placeholders)]
LocalPath = Annotated[Address, AfterValidator(_local)]
Attention = Annotated[int | str, AfterValidator(_level_or_resolution)]
Images = Annotated[Span, BeforeValidator(Span.parse), PlainSerializer(str)]
Interval = Annotated[Images, AfterValidator(_above_zero)]
Rampup = Annotated[Images, AfterValidator(_not_in_epochs)]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
SigmaRel = Annotated[float, Field(gt=0, lt=LONGEST)]
SigmaRels = Annotated[list[SigmaRel], Field(min_length=1), AfterValidator(_distinct_in_names)]
SnapshotsKept = Annotated[int, Field(ge=-1), AfterValidator(_some_kept)]
CheckpointsKept = Annotated[int, Field(ge=-1), AfterValidator(_one_to_resume_from)]
DiskSpace = Annotated[str, AfterValidator(_size)]
RunFolder = Annotated[
    str, Field(min_length=1), AfterValidator(_path), AfterValidator(_only_run_name), AfterValidator(_local_or_s3)
]
GuidanceInterval = Annotated[list[float], AfterValidator(_lo_below_hi)]
Restarts = Annotated[list[list[float]], AfterValidator(_restarts)]
Ranks = Annotated[int | str, AfterValidator(_ranks)]
GPU = Annotated[str, AfterValidator(_known_gpu)]
