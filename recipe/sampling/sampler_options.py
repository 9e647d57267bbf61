"""The options of sample.py that choose how images are drawn: the sampler, and where guidance is on."""

import argparse
import json
import math
from collections.abc import Callable
from typing import get_args

from recipe.command_line import remark
from recipe.command_options import OptionError, Options, choice, real_number, refuse_idle, whole_number
from recipe.edm2.samplers.generate import SamplerSettings
from recipe.edm2.samplers.guidance import EVERYWHERE, Interval
from recipe.edm2.samplers.names import OPTIONS, RESTART, Name, Restart, SolverType, check_restarts, takers
from recipe.notation import number

GIVEN = {
    "--churn": "S_churn",
    "--s-min": "S_min",
    "--s-max": "S_max",
    "--s-noise": "S_noise",
    "--eta": "eta",
    "--solver-type": "solver_type",
    "--order": "order",
    "--restart": "restart",
}
"""Options that some samplers take, and the settings that they are; none of them has a default of its own."""
INTERVAL = "guidance only at noise levels LO < sigma <= HI"


def add_sampler_options(parser: Options) -> None:
    """--sampler and what the samplers take; the schedule's options and those of guidance are the commands' own."""
    add = parser.add_argument
    sampler = f"{', '.join(OPTIONS)} (default heun); docs/sampling.md compares them"
    add("--sampler", type=choice("--sampler", *OPTIONS), default="heun", metavar="NAME", help=sampler)
    churn = "of heun: S_churn; 0 = deterministic (default)"
    add("--churn", type=real_number("--churn", least=0), help=churn)
    add("--s-min", type=real_number("--s-min", least=0), help="of --churn: the lowest noise level (default 0)")
    add("--s-max", type=real_number("--s-max", least=0), help="of --churn: the highest noise level (default: none)")
    add("--s-noise", type=real_number("--s-noise", least=0), help="scale of the noise that is added (default 1)")
    eta = "of the ancestral and SDE samplers: their noise; 0 = deterministic (default 1)"
    add("--eta", type=real_number("--eta", least=0), help=eta)
    kinds = get_args(SolverType)
    solver = "of dpmpp_2m_sde: midpoint (default) or heun"
    add("--solver-type", type=choice("--solver-type", *kinds), metavar="NAME", help=solver)
    add("--order", type=whole_number("--order", most=3), metavar="N", help="of unipc: 1, 2 (default) or 3")
    again = f"of restart: [[N, K, t_min, t_max], ...]: levels, times, lowest, highest (default {_shown(RESTART)})"
    add("--restart", type=restarts("--restart"), metavar="LIST", help=again)
    state = "precision of the noisy image between evaluations: float32 (default) or float64"
    add("--state-dtype", type=choice("--state-dtype", "float32", "float64"), default="float32", help=state)
    apart = "guidance without --guide: evaluate with and without labels one after the other, for half the memory"
    add("--guide-apart", action="store_true", help=apart)


def sampler_settings(arguments: argparse.Namespace) -> SamplerSettings:
    """What the options ask for; says where guidance is on if that is not what the interval says to the letter.

    Raises:
        OptionError: options that would do nothing, or do not go together.
    """
    sampler: Name = arguments.sampler
    for option, setting in GIVEN.items():
        if setting not in OPTIONS[sampler]:
            refuse_idle(arguments, [option], f"does nothing with --sampler {sampler}; it is of {_names(setting)}")
    if not arguments.churn:
        refuse_idle(arguments, ["--s-min", "--s-max"], "is of --churn, and there is none; add for example --churn 40")
    if sampler == "heun" and not arguments.churn:
        refuse_idle(arguments, ["--s-noise"], "is of --churn, and there is none; add for example --churn 40")
    if arguments.guidance == 1:
        refuse_idle(arguments, ["--guidance-interval"], "does nothing at --guidance 1; add for example --guidance 2")
    if arguments.guidance == 1 or arguments.guide is not None:
        refuse_idle(arguments, ["--guide-apart"], "is of guidance without --guide; leave it out")
    given = {setting: getattr(arguments, option[2:].replace("-", "_")) for option, setting in GIVEN.items()}
    settings = SamplerSettings(
        *(arguments.steps, arguments.sigma_min, arguments.sigma_max, arguments.rho),
        guidance=arguments.guidance,
        interval=arguments.guidance_interval or EVERYWHERE,
        in_one_batch=not arguments.guide_apart,
        sampler=sampler,
        state_dtype=arguments.state_dtype,
        **{setting: value for setting, value in given.items() if value is not None},
    )
    _check(settings)
    return settings


def _check(settings: SamplerSettings) -> None:
    option = "--restart"
    try:
        settings.check_restarts()
        option = "--guidance-interval"
        settings.interval.check(settings.sigmas())
    except ValueError as error:
        raise OptionError(f"{option}: {error}; choose others, or other --steps, --sigma-min, --sigma-max") from None
    where = settings.interval.remark(settings.sigmas())
    if where is not None:
        remark(f"--guidance-interval {where}")


def levels(option: str) -> Callable[[str], Interval]:
    """Noise levels LO:HI, 0 <= LO < HI; either may be left out."""

    def read(text: str) -> Interval:
        first, colon, last = (word.strip() for word in text.partition(":"))
        lo, hi = number(first) if first else 0.0, number(last) if last else math.inf
        if not colon or lo is None or hi is None or not 0 <= lo < hi:
            rule = "must be two noise levels LO:HI with 0 <= LO < HI; write for example 0.28:2.9"
            raise argparse.ArgumentTypeError(f"{option} {text}: {rule}")
        return Interval(float(lo), float(hi))

    return read


def restarts(option: str) -> Callable[[str], tuple[Restart, ...]]:
    """Intervals [[N, K, t_min, t_max], ...]."""

    def read(text: str) -> tuple[Restart, ...]:
        try:
            found = json.loads(text, parse_constant=str)
            if not isinstance(found, list) or not all(_is_numbers(given) for given in found):
                raise ValueError("must be a list of lists of numbers; write for example [[3, 2, 0.06, 0.3]]")
            check_restarts(found)
        except json.JSONDecodeError:
            rule = "must be a list of lists of numbers; write for example [[3, 2, 0.06, 0.3]]"
            raise argparse.ArgumentTypeError(f"{option} {text}: {rule}") from None
        except (ValueError, OverflowError) as error:
            raise argparse.ArgumentTypeError(f"{option} {text}: {error}") from None
        return tuple(tuple(given) for given in found)  # equal to the default if it is the same

    return read


def _is_numbers(given: object) -> bool:
    return isinstance(given, list) and all(isinstance(value, int | float) and math.isfinite(value) for value in given)


def _shown(given: tuple[Restart, ...]) -> str:
    return str([list(interval) for interval in given])


def _names(setting: str) -> str:
    return ", ".join(takers(setting))
