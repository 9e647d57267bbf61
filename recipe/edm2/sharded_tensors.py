"""Tensors that may be sharded over ranks along dimension 0, as FSDP2 shards parameters.

Whatever acts on each output unit or each element by itself needs no communication: it acts on `local` rows.
"""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def local(tensor: Tensor) -> Tensor:
    """This rank's rows of a sharded tensor, perhaps none, sharing its memory; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def assign_(target: Tensor, whole: Tensor) -> None:
    """Copy `whole`, which every rank holds, into `target` in place; a sharded target takes this rank's rows of it."""
    if isinstance(target, DTensor):
        shape, offset = compute_local_shape_and_global_offset(target.shape, target.device_mesh, target.placements)
        whole = whole[tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))]
    local(target).copy_(whole)


def gather(tensor: Tensor) -> Tensor:
    """The whole of a tensor, on every rank of its mesh: a collective call if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
