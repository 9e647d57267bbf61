"""Rules that span several keys of the configuration, or the configuration and the machine."""

import difflib
import importlib.util
import math
import re
from collections.abc import Iterator

from recipe.configuration.gpus import GPUS
from recipe.configuration.problems import Problem
from recipe.configuration.schema import Config
from recipe.configuration.spans import Span


def broken_rules(config: Config) -> Iterator[Problem]:
    """Every rule between keys that the configuration breaks."""
    yield from _intervals(config)
    yield from _network(config)
    yield from _averages(config)
    yield from _places(config)
    yield from _data(config)
    yield from _planning(config)
    if config.samples.interval is not None and config.samples.guidance != 1 and config.loss.label_dropout == 0:
        yield Problem("samples.guidance", str(config.samples.guidance),
                      "needs a network that also learns without labels: loss.label_dropout is 0",
                      "set loss.label_dropout=0.1 or samples.guidance=1")  # fmt: skip
    if config.loss.label_dropout > 0 and config.model.label_dim == 0:
        yield Problem("loss.label_dropout", str(config.loss.label_dropout),
                      "has no labels to drop: model.label_dim is 0",
                      "set loss.label_dropout=0 or name the number of classes in model.label_dim")  # fmt: skip
    micro = config.device_train_microbatch_size
    if isinstance(micro, int) and config.global_batch_size % micro != 0:
        yield Problem("device_train_microbatch_size", str(micro), "must divide global_batch_size "
                      f"{config.global_batch_size}", f"use {_divisor(config.global_batch_size, micro)}")  # fmt: skip
    if micro == "auto" and config.device == "cpu":
        yield Problem("device_train_microbatch_size", "auto", "needs a GPU, but device is cpu",
                      "set device_train_microbatch_size=null or device=gpu")  # fmt: skip
    for name in ("wandb", "mlflow"):
        if getattr(config.logging, name) is not None and importlib.util.find_spec(name) is None:
            yield Problem(f"logging.{name}", None, f"needs the package {name}, which is not installed",
                          f"pip install 'edm2-recipe[{name}]', or set logging.{name}=null")  # fmt: skip


def broken_rules_of_world(config: Config, world_size: int) -> Iterator[Problem]:
    """Rules between the configuration and the number of ranks that run it, or that a dry run plans for."""
    planned = config.planned_ranks()
    world_size = world_size if planned is None else planned[0]
    batch, micro = config.global_batch_size, config.device_train_microbatch_size
    if batch % world_size != 0:
        yield Problem("global_batch_size", str(batch), f"must be a multiple of the number of ranks, {world_size}",
                      f"use {_nearest(batch, world_size)}")  # fmt: skip
    elif isinstance(micro, int) and (batch // world_size) % micro != 0:
        share = batch // world_size
        yield Problem("device_train_microbatch_size", str(micro), f"must divide a rank's share of the batch, {share} = "
                      f"global_batch_size {batch} / {world_size} ranks", f"use {_divisor(share, micro)}")  # fmt: skip
    shard = None if config.fsdp is None else config.fsdp.shard
    if shard is not None and world_size % shard != 0:
        yield Problem("fsdp.shard", str(shard), f"must divide the number of ranks, {world_size}",
                      f"use {_divisor(world_size, shard)}")  # fmt: skip


def _intervals(config: Config) -> Iterator[Problem]:
    spans: dict[str, Span | None] = {
        "duration": config.duration,
        "ema.snapshot_interval": config.ema.snapshot_interval,
        "checkpoints.interval": config.checkpoints.interval,
        "samples.interval": config.samples.interval,
        "logging.interval": config.logging.interval,
    }
    for key, span in spans.items():
        if span is None:
            continue
        if span.value == 0:
            yield Problem(key, str(span), "must be above 0", f"use a multiple of global_batch_size, {_example(config)}")
        elif span.unit == "sp" and span.value % config.global_batch_size != 0:
            yield Problem(key, str(span), f"is {span.value} images, which must be a multiple of global_batch_size "
                          f"{config.global_batch_size}",
                          f"use {_nearest(span.value, config.global_batch_size)}")  # fmt: skip
    if config.optimizer.rampup.unit == "ep":
        yield Problem("optimizer.rampup", str(config.optimizer.rampup), "must be in images or batches, not epochs",
                      "write for example 10M")  # fmt: skip


def _network(config: Config) -> Iterator[Problem]:
    model = config.model
    halvings = len(model.channel_mult) - 1
    if model.img_resolution % 2**halvings != 0:
        yield Problem("model.img_resolution", str(model.img_resolution), f"must be a multiple of {2**halvings}: it is "
                      f"halved once per level of model.channel_mult {model.channel_mult} after the first",
                      f"use {_nearest(model.img_resolution, 2**halvings)} or fewer levels")  # fmt: skip
        return
    channels = [model.model_channels * multiplier for multiplier in model.channel_mult]
    widths = {model.img_resolution >> level: width for level, width in enumerate(channels)}
    unknown = [resolution for resolution in model.attn_resolutions if resolution not in widths]
    if unknown:
        yield Problem("model.attn_resolutions", str(model.attn_resolutions), "must be among the resolutions that "
                      f"model.img_resolution and model.channel_mult make, {sorted(widths)}; not {unknown}",
                      f"use for example [{min(widths)}]")  # fmt: skip
    lowest = min(widths)  # the decoder attends there whatever attn_resolutions says
    attended = sorted({lowest, *model.attn_resolutions} & widths.keys())
    if any(widths[resolution] % model.channels_per_head != 0 for resolution in attended):
        found = " and ".join(f"{widths[resolution]} at {resolution}x{resolution}" for resolution in attended)
        common = math.gcd(*(widths[resolution] for resolution in attended))
        yield Problem("model.channels_per_head", str(model.channels_per_head),
                      f"must divide the channels where there is attention, {found} (they follow from "
                      "model.model_channels, model.channel_mult, model.img_resolution and model.attn_resolutions)",
                      f"use {_divisor(common, model.channels_per_head)}")  # fmt: skip


def _averages(config: Config) -> Iterator[Problem]:
    lengths = config.ema.sigma_rels
    if any(round(length, 3) != length for length in lengths):
        near = sorted({min(max(round(length, 3), 0.001), 0.288) for length in lengths})
        yield Problem("ema.sigma_rels", str(lengths), "must have at most 3 decimals, as the names of the snapshots",
                      f"use {near}")  # fmt: skip
    elif len(set(lengths)) < len(lengths):
        yield Problem("ema.sigma_rels", str(lengths), "must not repeat a length", f"use {sorted(set(lengths))}")


def _places(config: Config) -> Iterator[Problem]:
    vae, channels = config.samples.vae, config.model.img_channels
    if config.samples.interval is not None and vae is None and channels not in (1, 3):
        yield Problem("samples.vae", None, f"is missing: samples.interval asks for pictures, but images of "
                      f"model.img_channels {channels} are latents",
                      "set samples.vae to the autoencoder that encoded them, or samples.interval=null")  # fmt: skip
    if vae is not None and importlib.util.find_spec("diffusers") is None:
        yield Problem("samples.vae", vae, "needs the package diffusers, which is not installed",
                      "pip install 'edm2-recipe[vae]', or set samples.vae=null")  # fmt: skip
    scheme, separator, rest = config.save_folder.partition("://")
    if separator and (scheme != "s3" or not rest.strip("/")):
        yield Problem("save_folder", config.save_folder, "must be a local folder or s3://bucket/folder",
                      "write for example s3://bucket/runs/{run_name}; mount other stores as a folder")  # fmt: skip
    if config.ema.snapshot_keep == 0:
        yield Problem("ema.snapshot_keep", "0", "must be -1 (all) or at least 1", "use -1")
    if config.fsdp is not None and config.device_train_microbatch_size == "auto":
        yield Problem("device_train_microbatch_size", "auto", "is not possible with fsdp (Composer probes FSDP1 only)",
                      "use a number; dry_run=true says which fits")  # fmt: skip
    if config.checkpoints.keep == 0:
        yield Problem("checkpoints.keep", "0", "must be -1 (all) or at least 1: nothing can resume without one",
                      "use 2")  # fmt: skip


def _data(config: Config) -> Iterator[Problem]:
    data = config.data
    if data.streams is None and data.local is None:
        yield Problem("data.local", None, "is missing, and so is data.streams",
                      "set data.local, for example 'data/digits', or data.streams for several data sets")  # fmt: skip
    for key in ("local", "remote") if data.streams is not None else ():
        if getattr(data, key) is not None:
            yield Problem(f"data.{key}", getattr(data, key), "cannot be set together with data.streams",
                          f"set data.{key}=null, or data.streams=null")  # fmt: skip
    folders = [stream.local.rstrip("/") for stream in data.streams or []]
    if len(set(folders)) < len(folders):
        yield Problem("data.streams", str(folders), "must not name a local folder twice",
                      "give each stream a folder of its own")  # fmt: skip
    if data.class_balanced and data.streams is not None:
        yield Problem("data.class_balanced", "true", "is not possible with data.streams, whose proportions say what is "
                      "drawn", "set data.class_balanced=false or data.streams=null")  # fmt: skip
    limit = data.cache_limit
    if limit is not None and not re.fullmatch(r"\d+(\.\d+)?(b|kb|mb|gb|tb|pb)", limit.lower()):
        yield Problem("data.cache_limit", repr(limit), "must be a size in b, kb, mb, gb, tb or pb",
                      "write for example 200gb")  # fmt: skip


def _planning(config: Config) -> Iterator[Problem]:
    try:
        config.planned_ranks()
    except ValueError as error:
        yield Problem("world_size", repr(config.world_size), str(error), "write for example 1024 or 128x8")
    if config.gpu is not None and config.gpu not in GPUS:
        given = config.gpu.upper()
        near = [name for name in GPUS if name.split("-")[0] == given.split("-")[0]]
        near = near or difflib.get_close_matches(given, GPUS, n=1)
        yield Problem("gpu", repr(config.gpu), f"must be one of {', '.join(GPUS)}",
                      f"did you mean {' or '.join(near)}?" if near else "name one with less memory")  # fmt: skip
    elif config.gpu is not None and config.device == "cpu":
        yield Problem("gpu", config.gpu, "plans for a GPU, but device is cpu", "set gpu=null or device=auto")
    for key in ("world_size", "gpu"):
        if getattr(config, key) is not None and not config.dry_run:
            yield Problem(key, str(getattr(config, key)), "only serves to plan, but dry_run is false",
                          f"set dry_run=true or {key}=null")  # fmt: skip


def _nearest(value: int, base: int) -> str:
    """The multiples of `base` around `value`, above 0."""
    below, above = value // base * base, -(-value // base) * base
    return f"{below} or {above}" if below > 0 else str(above)


def _divisor(value: int, wanted: int) -> int:
    """The largest divisor of `value` that is at most `wanted`."""
    return max(divisor for divisor in range(1, min(wanted, value) + 1) if value % divisor == 0)


def _example(config: Config) -> str:
    return f"for example {64 * config.global_batch_size}"
