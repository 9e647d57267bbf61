"""The options of sample.py that name a published combination: its networks' files are found, its settings filled in."""

import argparse
import dataclasses
import difflib
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipe.command_line import say
from recipe.command_options import OptionError, Options, address, refuse_idle
from recipe.edm2.samplers.generate import SamplerSettings
from recipe.edm2.samplers.guidance import EVERYWHERE
from recipe.sampling.presets import PRESETS, Preset, Weights, preset_table
from recipe.storage.addresses import is_remote, open_place

LIST = "list"


class _PresetAction(argparse.Action):
    """Stores the name of a preset; of `list` it prints the table, whatever else is missing, and ends."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if values == LIST:
            say(preset_table())
            parser.exit()
        setattr(namespace, self.dest, values)


def add_preset_options(parser: Options) -> None:
    """--preset and --weights; to be called after --guidance is there, whose default is then `settle_preset`'s."""
    add = parser.add_argument
    preset = "a published combination of network, guide and guidance, in place of SNAPSHOT; list = print all"
    add("--preset", action=_PresetAction, type=preset_name("--preset"), metavar="NAME", help=preset)
    weights = "of --preset: folder of the snapshots that convert.py made of its files, local or s3://"
    add("--weights", type=address("--weights"), metavar="PLACE", help=weights)
    parser.set_defaults(guidance=None)  # so that it can be told whether it was given


def preset_name(option: str) -> Callable[[str], str]:
    """The name of a preset, or `list`."""

    def read(text: str) -> str:
        if text not in (*PRESETS, LIST):
            close = difflib.get_close_matches(text, PRESETS, n=1)
            fix = f"did you mean {close[0]}?" if close else f"{option} {LIST} prints them"
            raise argparse.ArgumentTypeError(f"{option} {text}: no such preset; {fix}")
        return text

    return read


def settle_preset(arguments: argparse.Namespace) -> None:
    """Fill in snapshot, guide, guidance and interval by the preset, if there is one; other options stay as given.

    Raises:
        OptionError: options that contradict the preset, and files that are not there.
        StorageError: a place that cannot be read.
    """
    if arguments.preset is None:
        refuse_idle(arguments, ["--weights"], "is of --preset, and there is none; name a snapshot in it instead")
        if arguments.snapshot is None:
            raise OptionError("SNAPSHOT: is missing; name one, or --preset NAME with --weights PLACE")
        arguments.guidance = 1.0 if arguments.guidance is None else arguments.guidance
        return
    preset, name = PRESETS[arguments.preset], f"--preset {arguments.preset}"
    if arguments.snapshot is not None:
        raise OptionError(f"SNAPSHOT {arguments.snapshot}: {name} names the network already; leave one of them out")
    refuse_idle(arguments, ["--guide"], f"{name} says what guides; leave one of them out")
    _check_guidance(preset, name, arguments.guidance)
    if arguments.weights is None:
        raise OptionError(f"{name}: needs --weights, the folder or s3:// address of {_listed(_files(preset))}")
    found = find_weights(name, _files(preset), arguments.weights)
    arguments.snapshot, arguments.guide = found[0], found[1] if preset.guide is not None else None
    arguments.guidance = preset.guidance if arguments.guidance is None else arguments.guidance
    if arguments.guidance_interval is None and preset.interval != EVERYWHERE:
        arguments.guidance_interval = preset.interval


def _check_guidance(preset: Preset, name: str, guidance: float | None) -> None:
    if preset.guide is None and guidance not in (None, 1):
        raise OptionError(f"--guidance {guidance:g}: {name} has no guide; choose one with it (--preset {LIST})")
    if preset.guide is not None and guidance == 1:
        raise OptionError(f"--guidance 1: {name} is guided; choose one without a guide (--preset {LIST})")


def _files(preset: Preset) -> list[Weights]:
    return [preset.weights] if preset.guide is None else [preset.weights, preset.guide]


def _listed(files: list[Weights]) -> str:
    return " and ".join(f"{each.name}.safetensors" for each in files)


def find_weights(name: str, files: list[Weights], where: str) -> list[str]:
    """The addresses of the snapshots in a place.

    Raises:
        OptionError: one of them is not there; the message says what is needed, and how what is there becomes it.
        StorageError: a place that cannot be read.
    """
    if not is_remote(where) and not Path(where).is_dir():
        problem = "is a file" if Path(where).exists() else "no such folder"
        raise OptionError(f"--weights {where}: {problem}; name the folder of {_listed(files)}")
    place, base = open_place(where), where.rstrip("/") or "/"
    missing = [each for each in files if place.size(f"{each.name}.safetensors") is None]
    if missing:
        fixes = [_fix(each, base, place.size(f"{each.name}.pkl") is not None) for each in missing]
        needs = f"{name} needs {_listed(files)}; not there: {_listed(missing)}"
        raise OptionError(f"--weights {where}: {needs}; {'; '.join(fixes)}")
    return [f"{base}/{each.name}.safetensors" for each in files]


def _fix(weights: Weights, base: str, is_there: bool) -> str:
    source, target = (f"{base}/{weights.name}.{ending}" for ending in ("pkl", "safetensors"))
    how = f"python recipe/convert.py {shlex.quote(source)} --out {shlex.quote(target)}"
    return f"run {how}" if is_there else f"fetch {weights.name}.pkl into it (docs/weights.md) and run {how}"


def say_differences(name: str, settings: SamplerSettings) -> None:
    """Say in which settings of the sampler one differs from the preset, whose published result is not theirs."""
    published, given = (dataclasses.asdict(each) for each in (PRESETS[name].settings(), settings))
    odd = [f"{key} {given[key]} in place of {value}" for key, value in published.items() if given[key] != value]
    if odd:
        say(f"sample.py: --preset {name} with {', '.join(odd)}: not what was published", sys.stderr)
