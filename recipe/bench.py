"""Measure the recipe on this machine.

    python recipe/bench.py snapshots yamls/edm2.yaml [key=value ...] [--rate 2]
    python recipe/bench.py data [yamls/edm2.yaml key=value ...] [--images 8192] [--resolution 64]
    python recipe/bench.py prepare [SOURCE] [--images 8192]

snapshots: what a snapshot costs the training thread when the network takes `--rate` MB/s. A run in a temporary folder,
through the real training code.
data: images per second that one worker of the training loader reads, from the shards that a configuration names or, if
none is given, from synthetic ones of pixels and of latents; and what augmentation costs on this device.
prepare: images per second that become shards, and the shards' sizes, from a source of prepare.py's or from JPEG files
like ImageNet's.
docs/performance.md records results.
"""

if __name__ == "__main__":  # before the imports that take seconds
    from recipe.interrupts import end_at_once
    from recipe.lean_imports import import_less

    end_at_once("bench.py")
    import_less()

import argparse
import tempfile
from pathlib import Path

from recipe.command_line import exit_with, say
from recipe.command_options import OptionError, Options, choice, real_number, refuse_idle, whole_number
from recipe.configuration.reader import read_or_exit

USES = {"snapshots": ["--rate"], "data": ["--images", "--resolution"], "prepare": ["--images"]}
"""Which options each benchmark knows."""


def snapshots(given: list[str], folder: str, rate: float) -> None:
    """Measure a run whose length and writing the benchmark decides."""
    from recipe.benchmarks.snapshots import SNAPSHOTS, STEPS_BETWEEN, bench_snapshots

    own = {
        "save_folder": folder,
        "duration": f"{STEPS_BETWEEN * SNAPSHOTS + 5}ba",
        "samples.interval": "null",
        "ema.snapshot_interval": f"{STEPS_BETWEEN}ba",
        "checkpoints.interval": "1000000ba",
        "logging.tensorboard": "false",
        "logging.progress_bar": "false",
    }
    decided = [text for text in given if text.split("=")[0] in own]
    if decided:
        say(f"decided by the benchmark, not by {', '.join(decided)}")
    others = [text for text in given if text not in decided]
    bench_snapshots(read_or_exit([*others, *(f"{key}={value}" for key, value in own.items())], "bench.py"), rate)


def arguments_parser() -> Options:
    parser = Options("bench.py", "Measure the recipe on this machine.")
    add = parser.add_argument
    add("what", type=choice("WHAT", *USES), help=f"one of {', '.join(USES)}")
    add("config", nargs="*", help="YAML files and key=value, as for train.py; prepare: SOURCE")
    rate = "snapshots: MB/s that uploads get (default 2)"
    add("--rate", type=real_number("--rate", above=0), metavar="MB/S", help=rate)
    images = "of synthetic data (default 8192)"
    add("--images", type=whole_number("--images"), metavar="N", help=images)
    resolution = "data: of the synthetic sets (default 64)"
    add("--resolution", type=whole_number("--resolution", least=16), metavar="N", help=resolution)
    return parser


def check(arguments: argparse.Namespace) -> None:
    """Raises OptionError for what the benchmark has no use for."""
    what, given = arguments.what, arguments.config
    others = sorted({option for options in USES.values() for option in options} - set(USES[what]))
    refuse_idle(arguments, others, f"does nothing for {what}; leave it out")
    if what == "data" and arguments.images is not None and arguments.images < 256:
        raise OptionError(f"--images {arguments.images}: must be at least 256, a batch")
    if what == "data" and given:
        refuse_idle(arguments, USES[what], "is of synthetic data, but a configuration names data; leave one out")
    if what == "prepare" and given:
        refuse_idle(arguments, USES[what], "is of synthetic data, but SOURCE is given; leave one out")
    if what == "prepare" and len(given) > 1:
        raise OptionError(f"{given[1]}: only one SOURCE can be measured; leave it out")


def main() -> None:
    arguments = arguments_parser().parse_args()
    try:
        check(arguments)
        measure(arguments)
    except (ValueError, OSError) as error:
        exit_with("bench.py", error)


def measure(arguments: argparse.Namespace) -> None:
    """Run the benchmark that is asked for."""
    images = arguments.images or 8192
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "snapshots":
            snapshots(arguments.config, folder, arguments.rate or 2.0)
        elif arguments.what == "data":
            from recipe.benchmarks.data import bench_data

            config = read_or_exit(arguments.config, "bench.py") if arguments.config else None
            bench_data(config, Path(folder), images, arguments.resolution or 64)
        else:
            from recipe.benchmarks.preparation import bench_preparation

            source = arguments.config[0] if arguments.config else None
            bench_preparation(source, images, Path(folder))


if __name__ == "__main__":
    from recipe.interrupts import interruptible

    with interruptible("bench.py", "nothing is kept"):
        main()
