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

    end_at_once("bench.py")

import argparse
import tempfile
from pathlib import Path

from recipe.configuration.reader import read_or_exit


def snapshots(given: list[str], folder: str, rate: float) -> None:
    """Measure a run whose length and writing the benchmark decides."""
    from recipe.benchmarks.snapshots import SNAPSHOTS, STEPS_BETWEEN, bench_snapshots

    own = {"save_folder": folder, "duration": f"{STEPS_BETWEEN * SNAPSHOTS + 5}ba", "samples.interval": "null",
           "ema.snapshot_interval": f"{STEPS_BETWEEN}ba", "checkpoints.interval": "1000000ba",
           "logging.tensorboard": "false", "logging.progress_bar": "false"}  # fmt: skip
    others = [text for text in given if text.split("=")[0] not in own]
    bench_snapshots(read_or_exit([*others, *(f"{key}={value}" for key, value in own.items())], "bench.py"), rate)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the recipe on this machine.")
    parser.add_argument("what", choices=["snapshots", "data", "prepare"])
    parser.add_argument("config", nargs="*", help="YAML files and key=value, as for train.py; prepare: SOURCE")
    parser.add_argument("--rate", type=float, default=2.0, help="snapshots: MB/s that uploads get (default 2)")
    parser.add_argument("--images", type=int, default=8192, help="of synthetic data (default 8192)")
    parser.add_argument("--resolution", type=int, default=64, help="data: of the synthetic sets (default 64)")
    arguments = parser.parse_args()
    for name, least in ("images", 256), ("resolution", 16):
        if getattr(arguments, name) < least:
            parser.error(f"--{name} {getattr(arguments, name)}: must be at least {least}")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "snapshots":
            snapshots(arguments.config, folder, arguments.rate)
        elif arguments.what == "data":
            from recipe.benchmarks.data import bench_data

            config = read_or_exit(arguments.config, "bench.py") if arguments.config else None
            bench_data(config, Path(folder), arguments.images, arguments.resolution)
        else:
            from recipe.benchmarks.preparation import bench_preparation

            source = arguments.config[0] if arguments.config else None
            bench_preparation(source, arguments.images, Path(folder))


if __name__ == "__main__":
    from recipe.interrupts import interruptible

    with interruptible("bench.py", "nothing is kept"):
        main()
