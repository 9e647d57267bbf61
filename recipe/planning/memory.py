"""Memory that a rank of a training run needs, and what it sends, derived from a network on the meta device.

The state (weights, gradients, Adam's moments, averages) is exact for the rank that holds most. Activations are counted
by running one training step on the meta device, where nothing is computed or allocated: what PyTorch keeps and
produces there in bytes is what it keeps and produces on a CPU, operation by operation. On GPUs a dropout mask is
smaller than counted. The sum is an upper estimate, since not all of its parts peak at once.

Not counted, but allowed for: the CUDA context, buffers of NCCL, workspaces of cuDNN and cuBLAS, and what the caching
allocator rounds up and fragments (`allowance`).
"""

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from recipe.configuration.schema import FSDP
from recipe.edm2.loss import example_losses
from recipe.edm2.networks.precond import Precond
from recipe.edm2.precision import DTYPES

FLOAT32 = 4  # bytes of what is stored, updated and reduced
CUDA_LIBRARIES = 2 * 2**30  # bytes: context 0.5-1 GB, the rest for NCCL and for workspaces
FRAGMENTATION = 0.05  # of the activations


@dataclass(frozen=True)
class Layout:
    """How the state of a run lies over its ranks.

    Attributes:
        ranks: how many there are.
        fsdp: the configuration's section; None = DDP, each rank holds everything.
    """

    ranks: int
    fsdp: FSDP | None = None

    @property
    def shards(self) -> int:
        """Ranks that share one copy of the state."""
        if self.fsdp is None:
            return 1
        return self.ranks if self.fsdp.shard is None else self.fsdp.shard

    @property
    def replicas(self) -> int:
        return self.ranks // self.shards

    @property
    def gather_size(self) -> int:
        """Bytes per element of gathered weights."""
        return FLOAT32 if self.fsdp is None else DTYPES[self.fsdp.gather_dtype].itemsize

    def held(self, parameter: Tensor) -> int:
        """Elements of a parameter on each rank: FSDP2 shards dimension 0 and pads all ranks to the fullest one."""
        return math.ceil(parameter.shape[0] / self.shards) * parameter[0].numel()

    def gathered(self, parameters: list[nn.Parameter]) -> int:
        """Elements of the buffer in which a unit is gathered or reduced, with the padding of every rank."""
        return self.shards * sum(map(self.held, parameters))


def units(net: Precond) -> tuple[list[list[nn.Parameter]], list[nn.Parameter]]:
    """The parameters that FSDP2 gathers together: of each block, in order of execution, and of all the rest."""
    blocks = [list(block.parameters()) for block in net.blocks()]
    inside = {id(parameter) for block in blocks for parameter in block}
    return blocks, [parameter for parameter in net.parameters() if id(parameter) not in inside]


def state_bytes(net: Precond, averages: int, layout: Layout) -> dict[str, int]:
    """Bytes per rank of everything that lasts from step to step, by kind; `averages` is how many are tracked."""
    held = FLOAT32 * sum(map(layout.held, net.parameters()))
    state = {"weights": held, "gradients": held, "Adam": 2 * held, "averages": averages * held}
    if layout.fsdp is None and layout.ranks > 1:
        state["DDP buckets"] = held  # Composer leaves DDP's gradient_as_bucket_view off: gradients are there twice
    return state | {"buffers": (1 + averages) * sum(buffer.nbytes for buffer in net.buffers())}


def working_bytes(net: Precond, layout: Layout) -> int:
    """Bytes that FSDP2 needs beside its shards while a step runs; 0 for DDP.

    Each CUDA stream has memory of its own. In the one that gathers, the buffers of two consecutive blocks are alive, as
    the next is gathered before the last is freed. In the one that computes there are the weights and gradients of the
    unit at work, the rest's weights and gradients, and the input of a reduction, of this block or the last.
    """
    if layout.fsdp is None:
        return 0
    blocks, rest = units(net)
    sizes = [layout.gathered(block) for block in blocks]
    size_of_rest, size = layout.gathered(rest), layout.gather_size
    gathering = size * max(a + b for a, b in zip([size_of_rest, *sizes], [*sizes, 0], strict=True))
    computing = 0
    for index, block in enumerate(sizes):
        kept = 0 if layout.fsdp.reshard_after_forward else sum(sizes[:index])
        reducing = sizes[index + 1] if index + 1 < len(sizes) else 0
        backward = max(2 * size * block + FLOAT32 * reducing, (size + FLOAT32) * block)
        computing = max(computing, size * kept + backward)
    reduced = FLOAT32 * max(sizes) // layout.shards  # before it is added to the gradients of earlier microbatches
    return gathering + computing + 2 * size * size_of_rest + reduced


class LiveBytes(TorchDispatchMode):
    """Notes after every operation how many bytes of what was produced inside are alive."""

    def __init__(self, present: list[Tensor]):
        super().__init__()
        self.live = 0
        self.timeline: list[int] = []
        self._known = WeakIdKeyDictionary({tensor.untyped_storage(): None for tensor in present})

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._note, out)
        self.timeline.append(self.live)
        return out

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known[storage] = None
            self.live += storage.nbytes()
            weakref.finalize(storage, self._freed, storage.nbytes())

    def _freed(self, nbytes: int) -> None:
        self.live -= nbytes


def record_step(net: Precond, images: int) -> list[int]:
    """Bytes alive beside the state after each operation of a training step on `images` images, without optimizer.

    Gradients count as state: they are there from an earlier microbatch, and this one's are added to them.
    """
    device = next(net.parameters()).device
    shape = (images, net.img_channels, net.img_resolution, net.img_resolution)
    gradients = [torch.zeros_like(parameter) for parameter in net.parameters()]
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        parameter.grad = gradient
    with torch.device(device), LiveBytes([*net.parameters(), *net.buffers(), *gradients]) as live:
        clean, noise, sigma = torch.zeros(shape), torch.zeros(shape), torch.ones(images)
        conditions = torch.zeros(images, net.unet.augment_dim) if net.unet.augment_dim > 0 else None
        labels = torch.zeros(images, dtype=torch.int64)
        losses, _ = example_losses(net, clean, sigma, noise, labels, conditions)
        losses.mean().backward()
    for parameter in net.parameters():
        parameter.grad = None
    return live.timeline


@dataclass(frozen=True)
class Activations:
    """Bytes alive after each operation of a step: `fixed` + images * `per_image`.

    The fixed part is mostly the normalised weights that each layer keeps for backward, in the activations' precision.
    """

    fixed: NDArray[np.int64]
    per_image: NDArray[np.int64]

    @classmethod
    def of(cls, net: Precond) -> "Activations":
        """Of a step of `net`, whose activation checkpointing and dtype are set."""
        two, three = (np.array(record_step(net, images), dtype=np.int64) for images in (2, 3))
        return cls(two - 2 * (three - two), three - two)

    def peak(self, images: int) -> int:
        """Most bytes that are alive at once with microbatches of so many images."""
        return int((self.fixed + images * self.per_image).max())


def allowance(activations: int) -> int:
    """Bytes of GPU memory to leave for what is not counted."""
    return CUDA_LIBRARIES + int(FRAGMENTATION * activations)


def largest_microbatch(share: int, capacity: float, need: Callable[[int], int]) -> int | None:
    """The largest divisor of a rank's share of the batch whose `need` fits into `capacity` bytes; None = not even 1."""
    fitting = (images for images in range(1, share + 1) if share % images == 0 and need(images) <= capacity)
    return max(fitting, default=None)


@dataclass(frozen=True)
class Traffic:
    """Bytes that a rank sends in a step, and as many that it receives, in ring collectives.

    Attributes:
        shards: among the ranks that share one copy of the state.
        replicas: among the ranks that hold the same part of it.
    """

    shards: int
    replicas: int

    @classmethod
    def of(cls, net: Precond, layout: Layout, microbatches: int) -> "Traffic":
        """DDP reduces gradients with the last microbatch only; FSDP2 under Composer gathers and reduces in each."""
        held = FLOAT32 * sum(map(layout.held, net.parameters()))
        reduced = 2 * held * (layout.replicas - 1) // layout.replicas
        if layout.fsdp is None:
            return cls(0, reduced)
        blocks, rest = units(net)
        size, size_of_rest = sum(map(layout.gathered, blocks)), layout.gathered(rest)
        gathers = 2 if layout.fsdp.reshard_after_forward else 1  # of a block; the rest is kept until its backward
        total = layout.gather_size * (gathers * size + size_of_rest) + FLOAT32 * (size + size_of_rest)
        return cls(microbatches * total * (layout.shards - 1) // layout.shards, microbatches * reduced)

    def leaves_node(self, layout: Layout, ranks_per_node: int) -> int:
        """Bytes that leave each node in a step, where shards and nodes divide one another.

        A ring crosses to the next node once, whatever the number of its ranks on a node.
        """
        if layout.ranks <= ranks_per_node:
            return 0
        rings = min(layout.shards, ranks_per_node)  # as many groups of replicas meet on a node
        return (0 if ranks_per_node % layout.shards == 0 else self.shards) + rings * self.replicas
