"""Rules between several keys of the configuration, or between the configuration and the machine.

They are asked only once each key is valid by itself (`values.py`).
"""

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from recipe.configuration.inputs import Data
from recipe.configuration.outputs import Logging, Samples
from recipe.configuration.problems import Problem
from recipe.configuration.schema import Config, Loss, Model
from recipe.configuration.spans import Span
from recipe.edm2.samplers.names import OPTIONS, takers

if TYPE_CHECKING:
    from recipe.edm2.samplers.generate import SamplerSettings

SAMPLER_KEYS = {
    "churn": "S_churn", "s_min": "S_min", "s_max": "S_max", "eta": "eta", "s_noise": "S_noise",
    "solver_type": "solver_type", "order": "order", "restart": "restart",
}  # fmt: skip
"""Keys of samples that some samplers take, and what these call them."""
CHURN_KEYS = ("s_min", "s_max")


def broken_rules(config: Config) -> Iterator[Problem]:
    """Every rule between keys that the configuration breaks."""
    spans = {
        "duration": config.duration,
        "ema.snapshot_interval": config.ema.snapshot_interval,
        "checkpoints.interval": config.checkpoints.interval,
        "samples.interval": config.samples.interval,
        "metrics.interval": None if config.metrics is None else config.metrics.interval,
        "logging.interval": config.logging.interval,
    }
    yield from _spans(spans, config.global_batch_size)
    yield from _network(config.model)
    yield from _data(config.data)
    yield from _samples(config.samples, config.model, config.loss)
    yield from _sampler(config.samples)
    yield from _metrics(config)
    yield from _microbatch(config)
    yield from _planning(config)
    yield from _loggers(config.logging)
    if config.loss.label_dropout > 0 and config.model.label_dim == 0:
        yield Problem(
            "loss.label_dropout",
            str(config.loss.label_dropout),
            "has no labels to drop: model.label_dim is 0",
            "set loss.label_dropout=0 or name the number of classes in model.label_dim",
        )


def broken_rules_of_world(config: Config, world_size: int) -> Iterator[Problem]:
    """Rules between the configuration and the number of ranks that run it, or that a dry run plans for."""
    planned = config.planned_ranks()
    world_size = world_size if planned is None else planned[0]
    batch, micro = config.global_batch_size, config.device_train_microbatch_size
    if batch % world_size != 0:
        rule = f"must be a multiple of the number of ranks, {world_size}"
        yield Problem("global_batch_size", str(batch), rule, f"use {_nearest(batch, world_size)}")
    elif isinstance(micro, int) and (batch // world_size) % micro != 0:
        share = batch // world_size
        rule = f"must divide a rank's share of the batch, {share} = global_batch_size {batch} / {world_size} ranks"
        yield Problem("device_train_microbatch_size", str(micro), rule, f"use {_divisor(share, micro)}")
    shard = None if config.fsdp is None else config.fsdp.shard
    if shard is not None and world_size % shard != 0:
        rule = f"must divide the number of ranks, {world_size}"
        yield Problem("fsdp.shard", str(shard), rule, f"use {_divisor(world_size, shard)}")


def _spans(spans: Mapping[str, Span | None], batch: int) -> Iterator[Problem]:
    """Amounts of training are whole batches of `batch` images."""
    for key, span in spans.items():
        if span is not None and span.unit == "sp" and span.value % batch != 0:
            rule = f"is {span.value} images, which must be a multiple of global_batch_size {batch}"
            yield Problem(key, str(span), rule, f"use {_nearest(span.value, batch)}")


def _network(model: Model) -> Iterator[Problem]:
    """What cannot be known before the data says the resolution is asked again then."""
    levels, resolution = len(model.channel_mult), model.img_resolution
    unknown = [given for given in model.attn_resolutions if isinstance(given, str) and int(given[5:]) >= levels]
    if unknown:
        rule = f"must be among the {levels} levels of model.channel_mult {model.channel_mult}; not {unknown}"
        shown = str(model.attn_resolutions)
        yield Problem("model.attn_resolutions", shown, rule, f"use level0 to level{levels - 1}")
    elif resolution != "auto" and resolution % 2 ** (levels - 1) != 0:
        yield Problem(
            "model.img_resolution",
            str(resolution),
            f"must be a multiple of {2 ** (levels - 1)}: it is halved once per level of model.channel_mult "
            f"{model.channel_mult} after the first",
            f"use {_nearest(resolution, 2 ** (levels - 1))} or fewer levels; data have --resolution of prepare.py",
        )
    elif resolution != "auto":
        widths = {
            resolution >> level: model.model_channels * multiplier
            for level, multiplier in enumerate(model.channel_mult)
        }
        yield from _attention(model, resolution, widths)


def _attention(model: Model, resolution: int, widths: dict[int, int]) -> Iterator[Problem]:
    """`widths`: the channels at each resolution."""
    wanted = model.attention(resolution)
    unknown = [resolution for resolution in wanted if resolution not in widths]
    if unknown:
        yield Problem(
            "model.attn_resolutions",
            str(model.attn_resolutions),
            "must be among the resolutions that model.img_resolution and model.channel_mult make, "
            f"{sorted(widths)}; not {unknown}",
            f"use for example [{min(widths)}], or [level{len(widths) - 1}] for the lowest whatever the resolution",
        )
    lowest = min(widths)  # the decoder attends there whatever attn_resolutions says
    attended = sorted({lowest, *wanted} & widths.keys())
    if any(widths[resolution] % model.channels_per_head != 0 for resolution in attended):
        found = " and ".join(f"{widths[resolution]} at {resolution}x{resolution}" for resolution in attended)
        common = math.gcd(*(widths[resolution] for resolution in attended))
        yield Problem(
            "model.channels_per_head",
            str(model.channels_per_head),
            f"must divide the channels where there is attention, {found} (they follow from model.model_channels, "
            "model.channel_mult, model.img_resolution and model.attn_resolutions)",
            f"use {_divisor(common, model.channels_per_head)}",
        )


def _data(data: Data) -> Iterator[Problem]:
    if data.streams is None:
        if data.local is None:
            fix = "set data.local, for example 'data/digits', or data.streams for several data sets"
            yield Problem("data.local", None, "is missing, and so is data.streams", fix)
        return
    for key, value in {"data.local": data.local, "data.remote": data.remote}.items():
        if value is not None:
            fix = f"set {key}=null, or data.streams=null"
            yield Problem(key, value, "cannot be set together with data.streams", fix)
    folders = [stream.local.rstrip("/") for stream in data.streams]
    if len(set(folders)) < len(folders):
        fix = "give each stream a folder of its own"
        yield Problem("data.streams", str(folders), "must not name a local folder twice", fix)
    if data.class_balanced:
        rule = "is not possible with data.streams, whose proportions say what is drawn"
        yield Problem("data.class_balanced", "true", rule, "set data.class_balanced=false or data.streams=null")


def _metrics(config: Config) -> Iterator[Problem]:
    metrics = config.metrics
    if metrics is None:
        return
    unknown = [length for length in metrics.sigma_rels or () if length not in config.ema.sigma_rels]
    if unknown:
        rule = f"must be among the tracked averages, ema.sigma_rels {config.ema.sigma_rels}"
        yield Problem("metrics.sigma_rels", str(metrics.sigma_rels), rule, "use some of these, or null for all")
    if config.samples.vae is None and config.model.img_channels not in (1, 3, "auto"):
        rule = f"are of pictures, but images of model.img_channels {config.model.img_channels} are latents"
        yield Problem("metrics", None, rule, "set samples.vae to the autoencoder that encoded them, or metrics=null")


def _samples(samples: Samples, model: Model, loss: Loss) -> Iterator[Problem]:
    if samples.interval is not None and samples.vae is None and model.img_channels not in (1, 3, "auto"):
        yield Problem(
            "samples.vae",
            None,
            "is missing: samples.interval asks for pictures, but images of model.img_channels "
            f"{model.img_channels} are latents",
            "set samples.vae to the autoencoder that encoded them, or samples.interval=null",
        )
    if samples.vae is not None and importlib.util.find_spec("diffusers") is None:
        fix = "pip install 'edm2-recipe[vae]', or set samples.vae=null"
        yield Problem("samples.vae", samples.vae, "needs the package diffusers, which is not installed", fix)
    if samples.interval is not None and samples.guidance != 1 and loss.label_dropout == 0:
        rule = "needs a network that also learns without labels: loss.label_dropout is 0"
        fix = "set loss.label_dropout=0.1 or samples.guidance=1"
        yield Problem("samples.guidance", str(samples.guidance), rule, fix)


def _sampler(samples: Samples) -> Iterator[Problem]:
    """Settings of the sampler: such as it takes, and an interval of guidance and restarts that it can keep."""
    for name, option in SAMPLER_KEYS.items():
        value, default = getattr(samples, name), Samples.model_fields[name].default
        if value != default and option not in OPTIONS[samples.sampler]:
            rule = f"does nothing with samples.sampler {samples.sampler}"
            fix = f"leave it out, or set samples.sampler to {' or '.join(takers(option))}"
            yield Problem(f"samples.{name}", str(value), rule, fix)
        elif value != default and name in CHURN_KEYS and samples.churn == 0:
            fix = "leave it out, or set for example samples.churn=40"
            yield Problem(f"samples.{name}", str(value), "is of samples.churn, which is 0", fix)
    if samples.sigma_min >= samples.sigma_max:
        fix = "the paper has 0.002 and 80"
        yield Problem("samples.sigma_min", f"{samples.sigma_min:g}", "must be below samples.sigma_max", fix)
        return
    interval = samples.guidance_interval
    if interval is not None and samples.guidance == 1:
        fix = "set samples.guidance=2, or samples.guidance_interval=null"
        yield Problem("samples.guidance_interval", str(interval), "does nothing: samples.guidance is 1", fix)
    checks: dict[str, Callable[[SamplerSettings], None]] = {}
    if samples.sampler == "restart":
        checks["restart"] = lambda settings: settings.check_restarts()
    if interval is not None:
        checks["guidance_interval"] = lambda settings: settings.interval.check(settings.sigmas())
    for name, check in checks.items():  # most configurations have none, and need no torch for this
        try:
            check(samples.settings())
        except ValueError as error:
            fix = "choose others, or other noise levels"
            yield Problem(f"samples.{name}", str(getattr(samples, name)), str(error), fix)


def _microbatch(config: Config) -> Iterator[Problem]:
    key, micro, batch = "device_train_microbatch_size", config.device_train_microbatch_size, config.global_batch_size
    if isinstance(micro, int) and batch % micro != 0:
        yield Problem(key, str(micro), f"must divide global_batch_size {batch}", f"use {_divisor(batch, micro)}")
    if micro == "auto" and config.fsdp is not None:
        rule = "is not possible with fsdp (Composer probes FSDP1 only)"
        yield Problem(key, "auto", rule, "use a number; dry_run=true says which fits")
    if micro == "auto" and config.device == "cpu":
        yield Problem(key, "auto", "needs a GPU, but device is cpu", f"set {key}=null or device=gpu")


def _planning(config: Config) -> Iterator[Problem]:
    if config.gpu is not None and config.device == "cpu":
        yield Problem("gpu", config.gpu, "plans for a GPU, but device is cpu", "set gpu=null or device=auto")
    for key, value in {"world_size": config.world_size, "gpu": config.gpu}.items():
        if value is not None and not config.dry_run:
            rule = "only serves to plan, but dry_run is false"
            yield Problem(key, str(value), rule, f"set dry_run=true or {key}=null")


def _loggers(logging: Logging) -> Iterator[Problem]:
    for name, section in {"wandb": logging.wandb, "mlflow": logging.mlflow}.items():
        if section is not None and importlib.util.find_spec(name) is None:
            fix = f"pip install 'edm2-recipe[{name}]', or set logging.{name}=null"
            yield Problem(f"logging.{name}", None, f"needs the package {name}, which is not installed", fix)


def _nearest(value: int, base: int) -> str:
    """The multiples of `base` around `value`, above 0."""
    below, above = value // base * base, -(-value // base) * base
    return f"{below} or {above}" if below > 0 else str(above)


def _divisor(value: int, wanted: int) -> int:
    """The largest divisor of `value` that is at most `wanted`."""
    return max(divisor for divisor in range(1, min(wanted, value) + 1) if value % divisor == 0)
