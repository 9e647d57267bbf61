"""Shards the model over ranks with FSDP2.

The network and each of its averages are FSDP roots of their own, with the network's blocks as units, so that sampling
from an average never disturbs the training of the network. Composer gets a model that is sharded already: its own
wrapping has no setting for the precision of gathered weights, and overwrites a mesh with replicas.
"""

import warnings
from typing import Any

import torch
from composer.utils import dist
from composer.utils.misc import ParallelismType
from composer.utils.parallelism import FSDP2Config, ParallelismConfig
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard import _fsdp_collectives

from recipe.configuration.schema import FSDP
from recipe.edm2.precision import DTYPES
from recipe.training.model import DiffusionModel


class _ShardedAlready(FSDP2Config):
    """What Composer needs to know to save and load a model that is sharded before it gets it."""

    degrees: tuple[int, int] = (1, -1)

    @property
    def data_parallel_shard_degree(self) -> int:
        return self.degrees[1]

    @property
    def data_parallel_replicate_degree(self) -> int | None:
        return self.degrees[0] if self.degrees[0] > 1 else None


def degrees(fsdp: FSDP, world_size: int) -> tuple[int, int]:
    """(replicas, ranks that share one copy of the state) for that many ranks."""
    shard = world_size if fsdp.shard is None else fsdp.shard
    return world_size // shard, shard


def shard_(model: DiffusionModel, fsdp: FSDP, device_type: str) -> ParallelismConfig:
    """Shard `model`, perhaps still on the meta device, in place; returns the Trainer's `parallelism_config`."""
    if device_type == "cpu":
        repair_fsdp_on_cpu()
    replicas, shards = degrees(fsdp, dist.get_world_size())
    mesh = _mesh(device_type, replicas, shards)
    arguments: dict[str, Any] = dict(
        mesh=mesh,
        reshard_after_forward=fsdp.reshard_after_forward,
        mp_policy=MixedPrecisionPolicy(
            param_dtype=None if fsdp.gather_dtype == "float32" else DTYPES[fsdp.gather_dtype],
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,  # the network casts its own activations
        ),
    )
    for net in [model.net, *(average for _, average in model.averages())]:
        for block in net.blocks():
            fully_shard(block, **arguments)
        fully_shard(net, **arguments)
    for child in model.children():
        child._fsdp_wrap = False  # pyright: ignore[reportArgumentType]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Composer calls all of FSDP2 experimental
        config = _ShardedAlready(reshard_after_forward=fsdp.reshard_after_forward, state_dict_type="sharded")
    config.degrees = (replicas, shards)
    return ParallelismConfig(fsdp2=config)


def _mesh(device_type: str, replicas: int, shards: int) -> DeviceMesh:
    names = (ParallelismType.DATA_PARALLEL_REPLICATE.value, ParallelismType.DATA_PARALLEL_SHARD.value)
    if replicas == 1:
        return init_device_mesh(device_type, (shards,), mesh_dim_names=names[1:])
    return init_device_mesh(device_type, (replicas, shards), mesh_dim_names=names)


def repair_fsdp_on_cpu() -> None:
    """Two repairs without which torch 2.7.0's FSDP2 is wrong on CPUs; torch has no setting for either.

    It leaves the division of gradients by the number of ranks to the backend's AVG. NCCL does it; gloo's reduce-scatter
    silently returns the plain sum, which Adam hides but for its epsilon, and its all-reduce refuses. And the
    all-reduce of replicas asserts that a CPU stream records events, which it never does.
    """

    def sum_then_divide(reduce_scatter_group: Any, all_reduce_group: Any, *_: Any, **__: Any) -> tuple[float, float]:
        return 1.0, float(reduce_scatter_group.size() * (1 if all_reduce_group is None else all_reduce_group.size()))

    _fsdp_collectives._get_gradient_divide_factors = sum_then_divide
    torch.cpu.Stream.record_event = lambda self: torch.cpu.Event()  # pyright: ignore[reportAttributeAccessIssue]
