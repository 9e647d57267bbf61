"""What the options of sweep.py ask for: the values of each coordinate, the judge, the guide, the sampler."""

import argparse
import dataclasses
import math
from collections.abc import Callable, Sequence

import torch

from recipe.command_line import parse_numbers, unique
from recipe.command_options import OptionError, refuse_idle
from recipe.configuration.spans import images_in
from recipe.edm2.ema import SIGMA_REL_LIMIT
from recipe.edm2.samplers.generate import SamplerSettings
from recipe.edm2.samplers.guidance import EVERYWHERE, Interval
from recipe.evaluation.averages import Averages
from recipe.evaluation.coordinate_search import Cost
from recipe.evaluation.evaluate_options import load_network, reference_of
from recipe.evaluation.judging import Judge
from recipe.evaluation.metrics import chosen
from recipe.evaluation.point_measure import Guide, GuideRun
from recipe.evaluation.points import Axes, Point
from recipe.evaluation.sweep import Sweep
from recipe.evaluation.sweep_table import cost
from recipe.sampling.drawing_options import check_schedule
from recipe.sampling.networks import check_guide, load
from recipe.sampling.sampler_options import levels, sampler_settings
from recipe.weights.posthoc import PosthocError

SUFFIX = ".safetensors"  # of a snapshot, by which a guide is told from a run


def check(arguments: argparse.Namespace) -> None:
    """What can be said against the options before a file is read. Raises OptionError."""
    chosen(arguments.metric.split(","))
    check_schedule(arguments)
    _lengths(arguments.sigma_rel, "--sigma-rel")
    strengths = _strengths(arguments.guidance)
    if strengths == [1]:
        idle = ["--guide", "--guide-sigma-rel", "--guide-nimg", "--interval"]
        refuse_idle(arguments, idle, "does nothing at --guidance 1; add for example --guidance 1,2")
    if arguments.interval is not None:
        _intervals(arguments.interval)
    a_run = arguments.guide is not None and not arguments.guide.endswith(SUFFIX)
    if not a_run:
        reason = "is of a --guide that is a run, and there is none; name one, RUN itself for example"
        refuse_idle(arguments, ["--guide-sigma-rel", "--guide-nimg"], reason)
    elif arguments.guide_sigma_rel is None:
        raise OptionError(
            f"--guide {arguments.guide}: is a run, and needs --guide-sigma-rel, the lengths of its average"
        )
    else:
        _lengths(arguments.guide_sigma_rel, "--guide-sigma-rel")
    if arguments.search == "coordinate" and task_of(arguments)[1] > 1:
        raise OptionError(
            f"--task {arguments.task}: is of a grid; a search goes from point to point, so give it more ranks instead "
            "(composer -n 8 recipe/sweep.py)"
        )


def task_of(arguments: argparse.Namespace) -> tuple[int, int]:
    """This task's number and how many there are, (0, 1) without --task. Raises OptionError."""
    if arguments.task is None:
        return 0, 1
    first, slash, last = arguments.task.partition("/")
    if not (slash and first.isascii() and first.isdecimal() and last.isascii() and last.isdecimal()):
        raise OptionError(f"--task {arguments.task}: must be I/N, for example 0/8 to 7/8")
    if not int(first) < int(last) <= 100_000:
        raise OptionError(f"--task {arguments.task}: I must be from 0 to N - 1")
    return int(first), int(last)


def axes_of(arguments: argparse.Namespace, averages: Averages) -> Axes:
    """The values of each coordinate.

    Raises:
        OptionError: values that are none.
        PosthocError: a time without a snapshot, a length that the snapshots support poorly.
    """
    lengths = _lengths(arguments.sigma_rel, "--sigma-rel")
    times = averages.times() if arguments.nimg == "all" else [averages.latest]
    if arguments.nimg not in (None, "all"):
        times = sorted({images_in(text, "--nimg") for text in arguments.nimg.split(",")})
    averages.check(times, lengths)
    guide_lengths: Sequence[float | None] = [None]
    if arguments.guide_sigma_rel is not None:
        guide_lengths = _lengths(arguments.guide_sigma_rel, "--guide-sigma-rel")
    intervals = [EVERYWHERE] if arguments.interval is None else _intervals(arguments.interval)
    return Axes(times, lengths, _strengths(arguments.guidance), intervals, guide_lengths)


def find_judge(arguments: argparse.Namespace, device: torch.device) -> Judge:
    """The judge of --ref and --metric. Raises EvaluationError, StorageError."""
    reference = reference_of(arguments)
    return Judge(reference, load_network(arguments, device, reference), arguments.metric.split(","))


def find_guide(arguments: argparse.Namespace, averages: Averages) -> Guide:
    """The guide of --guide, which fits the run. Raises SnapshotError, PosthocError, SampleError, StorageError."""
    if arguments.guide is None:
        return None
    if arguments.guide.endswith(SUFFIX):
        guide = load(arguments.guide, averages.device, averages.dtype)
        check_guide(guide, averages.outline)
        return guide
    run = arguments.guide.rstrip("/") or "/"
    found = Averages(run, averages.device, averages.dtype, arguments.force)
    check_guide(found.outline, averages.outline)
    nimg = found.latest if arguments.guide_nimg is None else images_in(arguments.guide_nimg, "--guide-nimg")
    try:
        found.check([nimg], _lengths(arguments.guide_sigma_rel, "--guide-sigma-rel"))
    except PosthocError as error:
        raise PosthocError(f"--guide {error}") from None
    return GuideRun(found, nimg)


def sweep_settings(arguments: argparse.Namespace, axes: Axes) -> SamplerSettings:
    """The sampler's settings, which go with each strength and interval of the sweep. Raises OptionError."""
    given = argparse.Namespace(**{**vars(arguments), "guidance": axes.strongest(), "guidance_interval": None})
    settings = sampler_settings(given)
    for interval in axes.interval:
        try:
            dataclasses.replace(settings, guidance=2.0, interval=interval).check()
        except ValueError as error:
            raise OptionError(
                f"--interval: {error}; choose another, or other --steps, --sigma-min, --sigma-max"
            ) from None
    return settings


def search_cost(sweep: Sweep, metric: str) -> Cost:
    """What a search makes low: the metric's value, or its negative."""

    def costs(points: Sequence[Point]) -> list[float]:
        return [cost(metric, result.values.get(metric, math.nan)) for result in sweep(points)]

    return costs


def _lengths(text: str, option: str) -> list[float]:
    found = _numbers(
        text,
        option,
        lambda value: 0 < value < SIGMA_REL_LIMIT,
        f"must be above 0 and below 12^-0.5 = {SIGMA_REL_LIMIT:.4f}",
    )
    for length in found:
        if round(length, 3) != length:
            raise OptionError(f"{option} {length:g}: must have at most 3 decimals")
    return found


def _strengths(text: str) -> list[float]:
    return _numbers(text, "--guidance", lambda value: value >= 0, "must be at least 0")


def _numbers(text: str, option: str, allowed: Callable[[float], bool], rule: str) -> list[float]:
    """Numbers, each once, rising."""
    try:
        found = sorted(unique(parse_numbers(text)))
    except ValueError as error:
        raise OptionError(f"{option}: {error}") from None
    for value in found:
        if not allowed(value):
            raise OptionError(f"{option} {value:g}: {rule}")
    return found


def _intervals(text: str) -> list[Interval]:
    """Intervals such as `all,0.28:2.9`, in their order."""
    read = levels("--interval")
    try:
        return list(dict.fromkeys(EVERYWHERE if part.strip() == "all" else read(part) for part in text.split(",")))
    except argparse.ArgumentTypeError as error:
        raise OptionError(f"{error}, or all") from None
