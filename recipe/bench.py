"""Measure the recipe on this machine.

    python recipe/bench.py snapshots yamls/edm2.yaml [key=value ...] [--rate 2]
    python recipe/bench.py data [yamls/edm2.yaml key=value ...] [--images 8192] [--resolution 64]

snapshots: what a snapshot costs the training thread when the network takes `--rate` MB/s. A run in a temporary folder,
through the real training code.
data: images per second that one worker of the training loader reads, from the shards that a configuration names or, if
none is given, from synthetic ones of pixels and of latents; and what augmentation costs on this device.
docs/performance.md records results.
"""

import argparse
import itertools
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from recipe.config import Config
from recipe.config_reader import read_config, read_or_exit

STEPS_BETWEEN = 10  # steps from one snapshot to the next
SNAPSHOTS = 4
REPEATS = 5
SOURCES = {  # of synthetic shards: columns
    "png": {"image": "png", "label": "int"},
    "raw": {"image": "ndarray:uint8", "label": "int"},
    "latents float32": {"mean": "ndarray:float32", "std": "ndarray:float32", "label": "int"},
    "latents float16": {"mean": "ndarray:float16", "std": "ndarray:float16", "label": "int"},
}


def bench_snapshots(config: Config, rate: float) -> None:
    """Print step time, time lost per snapshot, and the time of the copy alone."""
    import torch
    from composer.core import Callback, State
    from composer.loggers import Logger

    from recipe.storage.uploads import Uploads
    from recipe.training.callbacks import snapshot_tensors
    from recipe.training.data import check_data
    from recipe.training.model import unwrap
    from recipe.training.preflight import Start
    from recipe.training.run import build_trainer

    class Clock(Callback):
        """Notes when each batch begins."""

        def __init__(self):
            self.starts: list[float] = []

        def batch_start(self, state: State, logger: Logger) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.starts.append(time.perf_counter())

    trainer, folder, _ = build_trainer(config, Start(*check_data(config), None), None)
    folder.uploads = Uploads()
    store, sizes = folder.store, []

    def slow_store(name: str) -> None:
        sizes.append((folder.local / name).stat().st_size)
        time.sleep(sizes[-1] / (rate * 1e6))
        store(name)

    folder.store = slow_store
    clock = Clock()
    trainer.state.callbacks.insert(0, clock)
    trainer.fit()
    folder.uploads.drain()
    pairs = itertools.pairwise(clock.starts)
    steps = [after - before for before, after in pairs][STEPS_BETWEEN // 2 :]
    first = STEPS_BETWEEN - 1 - STEPS_BETWEEN // 2
    with_snapshot = steps[first::STEPS_BETWEEN]
    usual = statistics.median(step for index, step in enumerate(steps) if index % STEPS_BETWEEN != first)
    started = time.perf_counter()
    for _, average in unwrap(trainer.state.model).averages():
        snapshot_tensors(average, torch.float16)
    copy = time.perf_counter() - started
    lost = statistics.median(with_snapshot) - usual
    after = statistics.median(step for index, step in enumerate(steps) if index % STEPS_BETWEEN == first + 1)
    trainer.close()
    print(f"machine            {platform.processor() or platform.machine()}, torch {torch.__version__}")
    megabytes = sizes[0] / 1e6
    print(f"snapshot           {len(sizes)} files of {megabytes:.1f} MB, {megabytes / rate:.1f} s each to upload")
    print(f"step               {usual * 1e3:.1f} ms (median)")
    print(f"copy to the CPU    {copy * 1e3:.1f} ms for all averages")
    print(f"lost per snapshot  {lost * 1e3:.1f} ms (median)")
    print(f"step after it      {after * 1e3:.1f} ms (median), while it is written and uploaded")
    bound = usual + copy
    print(
        f"bound              {bound * 1e3:.1f} ms = a step and the copy: {'holds' if lost < bound else 'DOES NOT HOLD'}"
    )


def bench_data(arguments: list[str], folder: Path, images: int, resolution: int) -> None:
    """Print images per second and worker of the read path, and what augmentation costs per image."""
    import torch

    print(f"machine            {platform.processor() or platform.machine()}, torch {torch.__version__}")
    configurations = {"data": read_or_exit(arguments, "bench.py")} if arguments else {}
    for kind, columns in {} if arguments else SOURCES.items():
        path = folder / kind.replace(" ", "-")
        write_synthetic(path, columns, images, resolution)
        size = sum(file.stat().st_size for file in path.glob("*.mds")) / images / 1e3
        shape = [f"model.img_resolution={resolution}", f"model.img_channels={4 if 'mean' in columns else 3}"]
        given = ["run_name=bench", f"data.local={path}", "data.num_workers=1", "global_batch_size=256", *shape]
        empty = folder / "defaults.yaml"
        empty.write_text("samples: {interval: null}\n")
        configurations[f"{kind}, {size:.1f} kB an image"] = read_config([str(empty), *given])
    for name, config in configurations.items():
        print(f"read: {name:<32} {summary(read_rates(config))} images/s and worker")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for p in (0.12, 1.0):
        print(f"augment: p = {p:<27} {summary(augment_costs(p, resolution, device))} ms an image on {device}")


def write_synthetic(folder: Path, columns: dict[str, str], images: int, resolution: int) -> None:
    """Shards of random pictures that compress like photographs: smooth patches and a little noise."""
    from PIL import Image
    from streaming import MDSWriter

    generator = np.random.default_rng(0)
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for index in range(images):
            if "mean" in columns:
                shape, dtype = (4, resolution, resolution), columns["mean"].split(":")[1]
                arrays: dict[str, Any] = {name: generator.normal(size=shape).astype(dtype) for name in ("mean", "std")}
            else:
                patches = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                smooth = np.asarray(patches.resize((resolution, resolution), Image.Resampling.BICUBIC), dtype=np.int16)
                noisy = (smooth + generator.integers(-4, 5, smooth.shape)).clip(0, 255).astype(np.uint8)
                arrays = {"image": Image.fromarray(noisy) if columns["image"] == "png" else noisy.transpose(2, 0, 1)}
            writer.write(arrays | {"label": index % 1000})


def read_rates(config: Config) -> list[float]:
    """Images per second and worker that the training loader brings, by epoch, without the start of its workers."""
    from recipe.training.data import training_loader

    rates, loader, batch = [], training_loader(config, config.global_batch_size), config.global_batch_size
    for _ in range(REPEATS):
        batches: Iterator[Any] = iter(loader)
        first = 4  # what the workers have prepared while they started
        for _ in range(first):
            next(batches)
        started = time.perf_counter()
        count = sum(1 for _ in batches)
        rates.append(count * batch / (time.perf_counter() - started) / max(config.data.num_workers, 1))
    return rates


def augment_costs(p: float, resolution: int, device: str) -> list[float]:
    """Milliseconds per RGB image of augmenting a batch of 64 with all transforms of probability p."""
    import torch

    from recipe.edm2.augment import Augmentation, augment

    images, ids = torch.randn(64, 3, resolution, resolution, device=device), torch.arange(64, device=device)
    synchronize: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    costs = []
    for batch in range(2 * REPEATS):
        synchronize()
        started = time.perf_counter()
        augment(images, ids, Augmentation(p, 1e8, 1, 1, 1, 1, 1), 0, batch)
        synchronize()
        costs.append((time.perf_counter() - started) / len(images) * 1e3)
    return costs[REPEATS:]


def summary(values: list[float]) -> str:
    """Median and range."""
    digits = 0 if min(values) > 100 else 2
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the recipe on this machine.")
    parser.add_argument("what", choices=["snapshots", "data"])
    parser.add_argument("config", nargs="*", help="YAML files and key=value, as for train.py")
    parser.add_argument("--rate", type=float, default=2.0, help="snapshots: MB/s that uploads get (default 2)")
    parser.add_argument("--images", type=int, default=8192, help="data: size of the synthetic sets (default 8192)")
    parser.add_argument("--resolution", type=int, default=64, help="data: of the synthetic sets (default 64)")
    arguments = parser.parse_args()
    for name, least in ("images", 256), ("resolution", 16):
        if getattr(arguments, name) < least:
            parser.error(f"--{name} {getattr(arguments, name)}: must be at least {least}")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "data":
            bench_data(arguments.config, Path(folder), arguments.images, arguments.resolution)
            return
        own = {"save_folder": folder, "duration": f"{STEPS_BETWEEN * SNAPSHOTS + 5}ba", "samples.interval": "null",
               "ema.snapshot_interval": f"{STEPS_BETWEEN}ba", "checkpoints.interval": "1000000ba",
               "logging.tensorboard": "false", "logging.progress_bar": "false"}  # fmt: skip
        given = [text for text in arguments.config if text.split("=")[0] not in own]
        config = read_or_exit([*given, *(f"{key}={value}" for key, value in own.items())], "bench.py")
        Path(folder).mkdir(exist_ok=True)
        bench_snapshots(config, arguments.rate)
    sys.exit(0)


if __name__ == "__main__":
    main()
