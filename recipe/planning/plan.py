"""What a run will need, on this machine or any other, found without starting it or allocating anything."""

import os
from collections.abc import Iterator

import torch

from recipe.command_line import launcher_number, world_size
from recipe.configuration.gpus import COMMON, GPUS
from recipe.configuration.schema import Config
from recipe.data.checks import SHAPE, check_data, resolve
from recipe.data.facts import DataError, DataFacts
from recipe.data.index import sources
from recipe.edm2.networks.flops import macs_per_image
from recipe.edm2.networks.precond import Precond
from recipe.edm2.precision import DTYPES, activations_dtype
from recipe.planning.memory import (
    FLOAT32,
    Activations,
    Layout,
    Traffic,
    allowance,
    largest_microbatch,
    state_bytes,
    working_bytes,
)
from recipe.planning.sizes import checkpoint_bytes, count, snapshot_bytes

GIB = 2**30
Lines = Iterator[tuple[str, str]]


def print_plan(config: Config) -> None:
    """Print a run's size, compute and steps, its memory per rank, its traffic and its files.

    It is about as many ranks as `world_size` says, this launch's if that is null, and about GPUs unless device=cpu.
    """
    config, data = resolved(config)
    net = build(config)
    ranks, per_node = config.planned_ranks() or launched_ranks()
    layout, share, batch = Layout(ranks, config.fsdp), config.global_batch_size // ranks, config.global_batch_size
    needs = Needs(config, net, layout)
    microbatch, spans = needs.microbatch(share), images_of_spans(config)
    lines = [
        ("data", data),
        ("parameters", f"{count(net) / 1e6:.2f} M"),
        ("compute", f"{macs_per_image(net) / 1e9:.2f} GFLOPs per image (multiply-adds of one forward pass)"),
        ("steps", f"{spans[0] // batch} of {batch} images"),
        ("ranks", describe(layout, per_node)),
        ("microbatch", f"{microbatch} of a rank's {share} images per step; activations in {dtype_of(config)}"),
        ("memory per rank", f"{needs.total(microbatch) / GIB:.2f} GiB"),
        *needs.lines(microbatch),
        *([] if config.device == "cpu" else needs.fits(share)),
        ("traffic", traffic(net, layout, share // microbatch, per_node)),
        *files(config, net, *spans),
    ]
    for name, text in lines:
        print(f"{name:<17} {text}")


def dtype_of(config: Config) -> str:
    """Name of the activations' dtype; the plan is about GPUs, unless device=cpu."""
    return activations_dtype(config.model.dtype, on_gpu=config.device != "cpu")


def resolved(config: Config) -> tuple[Config, str]:
    """The configuration with the data's facts for `auto`, and what to say of the data, which are checked if at hand.

    They are at hand if their shards lie here; small files of data elsewhere are fetched only if the plan needs them.

    Raises:
        UserError: data at hand that do not fit the configuration, or sizes that nothing says.
    """
    unknown = [f"model.{key}" for key in SHAPE if getattr(config.model, key) == "auto"]
    here = all(place.remote is None and os.path.exists(place.local) for place in sources(config.data))
    if not here and not unknown:
        guess = DataFacts(sigma_data=0.5)  # no size depends on it
        return resolve(config, guess), "not here, so not checked against the configuration"
    try:
        found = check_data(config)
    except DataError as error:
        if here:
            raise
        keys = " and ".join(unknown)
        raise DataError(f"{keys} = auto: the plan needs numbers there, or the data: {error}") from None
    config = resolve(config, found.facts)
    resolution, channels, label_dim = config.model.shape()
    size = f"{channels}x{resolution}x{resolution} {found.facts.kind}"
    return config, f"{found.samples} images of {size}, network of {label_dim} classes"


def build(config: Config) -> Precond:
    """The network of a resolved configuration on the meta device, set up as in training."""
    with torch.device("meta"):
        net = Precond(**config.network_arguments(), dtype=DTYPES[dtype_of(config)])
    net.unet.activation_checkpointing = config.fsdp is not None and config.fsdp.activation_checkpointing
    return net


def launched_ranks() -> tuple[int, int]:
    """(ranks, ranks per node) of this launch."""
    ranks = world_size()
    return ranks, launcher_number("LOCAL_WORLD_SIZE", ranks)


def describe(layout: Layout, per_node: int | None) -> str:
    nodes = "" if per_node in (None, layout.ranks) else f" = {layout.ranks // per_node} x {per_node}"
    if layout.fsdp is None:
        how = "DDP, each holds the whole state" if layout.ranks > 1 else "it holds the whole state"
    else:
        copies = "1 copy" if layout.replicas == 1 else f"{layout.replicas} copies"
        how = f"FSDP2, {copies} of the state in {layout.shards} shards, gathered in {layout.fsdp.gather_dtype}"
    return f"{layout.ranks}{nodes}; {how}"


class Needs:
    """The memory that a rank of a run needs, in bytes."""

    def __init__(self, config: Config, net: Precond, layout: Layout):
        self.config = config
        self.state = state_bytes(net, len(config.ema.sigma_rels), layout)
        self.state |= {"gathering": working_bytes(net, layout)} if layout.fsdp is not None else {}
        self.activations = Activations.of(net)
        self.padding = self.state["weights"] * layout.shards / (FLOAT32 * count(net))

    def allowance(self, images: int) -> int:
        return 0 if self.config.device == "cpu" else allowance(self.activations.peak(images))

    def total(self, images: int) -> int:
        """With microbatches of so many images."""
        return sum(self.state.values()) + self.activations.peak(images) + self.allowance(images)

    def microbatch(self, share: int) -> int:
        """The microbatch that the configuration asks for: null is the rank's share, auto what fits the named GPU."""
        asked = self.config.device_train_microbatch_size
        if asked == "auto" and self.config.gpu is not None:
            return self.fitting(self.config.gpu, share) or 1
        return asked if isinstance(asked, int) else share

    def fitting(self, gpu: str, share: int) -> int | None:
        return largest_microbatch(share, GPUS[gpu] * GIB, self.total)

    def lines(self, microbatch: int) -> Lines:
        """Each part of the total."""
        peak, next_peak = self.activations.peak(microbatch), self.activations.peak(microbatch + 1)
        parts = self.state | {"activations": peak, "allowance": self.allowance(microbatch)}
        notes = {
            "weights": f"{self.padding:.2f} times an even share, as rows do not divide" if self.padding > 1.02 else "",
            "gathering": "whole blocks while they are at work, and their gradients",
            "activations": f"and {(next_peak - peak) / GIB:.3f} for each further image of a microbatch",
            "allowance": "CUDA context, NCCL, workspaces, fragmentation",
        }
        for name, size in parts.items():
            if size > 0:
                yield f"  {name}", f"{size / GIB:8.3f}  {notes.get(name, '')}".rstrip()

    def fits(self, share: int) -> Lines:
        """What fits the GPU of the configuration, or some common ones."""
        for gpu in COMMON if self.config.gpu is None else (self.config.gpu,):
            found = self.fitting(gpu, share)
            if found is not None:
                yield gpu, f"fits microbatches of {found}: {self.total(found) / GIB:.2f} of {GPUS[gpu]} GiB"
            else:
                yield gpu, f"too small: {self.total(1) / GIB:.2f} of {GPUS[gpu]} GiB for 1 image; {self.advice()}"

    def advice(self) -> str:
        if self.config.fsdp is None:
            return "shard the state with fsdp={}"
        if not self.config.fsdp.activation_checkpointing:
            return "set fsdp.activation_checkpointing=true"
        return "use more shards"


def traffic(net: Precond, layout: Layout, microbatches: int, per_node: int | None) -> str:
    sent = Traffic.of(net, layout, microbatches)
    text = f"{readable(sent.shards + sent.replicas)} sent and received by each rank per step"
    if layout.fsdp is not None:
        text += f", in {microbatches} microbatches" if microbatches > 1 else ", in 1 microbatch"
    if per_node is not None and per_node < layout.ranks:
        text += f"; {readable(sent.leaves_node(layout, per_node))} leave each node"
    return text


def files(config: Config, net: Precond, total: int, between_snapshots: int, between_checkpoints: int) -> Lines:
    """What the run writes: snapshots and checkpoints, each and in all, and what stays of them."""
    averages = len(config.ema.sigma_rels)
    size = snapshot_bytes(net, DTYPES[config.ema.snapshot_dtype])
    yield "snapshots", amounts(size, -(-total // between_snapshots), config.ema.snapshot_keep, averages)
    size = checkpoint_bytes(net, averages)
    yield "checkpoints", amounts(size, -(-total // between_checkpoints), config.checkpoints.keep)


def amounts(size: int, times: int, keep: int, files: int = 1) -> str:
    """Bytes of one file, of all that are written at so many times, and of those that stay; `keep` = -1 keeps all."""
    prefix = "" if files == 1 else f"{files} x "
    text = f"{readable(size)} each; {prefix}{times} in the run: {readable(files * times * size)}"
    stay = min(times, keep)
    return text if keep < 0 else f"{text}; {prefix}{stay} stay: {readable(files * stay * size)}"


def images_of_spans(config: Config) -> tuple[int, int, int]:
    """Images of the whole run, between snapshots and between checkpoints."""
    spans, epoch = (config.duration, config.ema.snapshot_interval, config.checkpoints.interval), None
    if any(span.unit == "ep" for span in spans):  # their length depends on the data
        epoch = check_data(config).samples // config.global_batch_size * config.global_batch_size
    total, snapshots, checkpoints = (span.images(config.global_batch_size, epoch) for span in spans)
    return total, snapshots, checkpoints


def readable(size: int) -> str:
    """1523 -> "1.52 kB"."""
    scaled, units = float(size), ["B", "kB", "MB", "GB", "TB", "PB"]
    while scaled >= 999.5 and len(units) > 1:
        scaled, units = scaled / 1000, units[1:]
    return f"{scaled:.3g} {units[0]}" if scaled < 999.5 else f"{scaled:.0f} {units[0]}"
