"""Sizes of a network and of the files that a run keeps of it; the network may be on the meta device."""

import torch

from recipe.edm2.networks.precond import Precond
from recipe.planning.memory import FLOAT32


def count(net: Precond) -> int:
    """Learned numbers of a network; buffers are not among them."""
    return sum(parameter.numel() for parameter in net.parameters())


def snapshot_bytes(net: Precond, dtype: torch.dtype) -> int:
    """Bytes of one snapshot but for its header: the average in `dtype`, buffers in float32."""
    return dtype.itemsize * count(net) + sum(buffer.nbytes for buffer in net.buffers())


def checkpoint_bytes(net: Precond, averages: int) -> int:
    """Bytes of one checkpoint, all shards together: weights, Adam's moments, averages, buffers; all float32."""
    return (3 + averages) * FLOAT32 * count(net) + (1 + averages) * sum(buffer.nbytes for buffer in net.buffers())
