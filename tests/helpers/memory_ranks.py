"""Trains a network on this launch's ranks and writes what each of them really holds and sends, in bytes.

    composer -n 2 tests/helpers/memory_ranks.py CASES.json OUT_FOLDER

CASES.json is a list of cases; the answer of each rank, one entry per case, is in OUT_FOLDER/rank<r>.json.
"""

if __name__ == "__main__":  # before the imports that take seconds
    from recipe.lean_imports import import_less

    import_less()

import contextlib
import ctypes
import gc
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from composer.distributed import prepare_ddp_module
from composer.utils import dist
from torch import Tensor, nn
from torch.distributed import GradBucket  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from recipe.configuration.schema import FSDP
from recipe.edm2.ema import update_ema_
from recipe.edm2.networks.precond import Precond
from recipe.edm2.sharded_tensors import local
from recipe.training.inputs import Batch
from recipe.training.model import DiffusionModel, unwrap
from recipe.training.sharding import shard_

SMALL: dict[str, Any] = dict(
    img_resolution=4,
    img_channels=1,
    label_dim=2,
    model_channels=32,
    channel_mult=[1, 2],
    num_blocks=1,
    attn_resolutions=[2],
    channels_per_head=32,
)


def stored(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of the storages behind tensors on this rank, each storage once."""
    storages = [local(tensor).untyped_storage() for tensor in tensors if tensor is not None]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def resident() -> int:
    """Bytes of this process that lie in memory and are not shared with files."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


class Run:
    """A network in training, distributed as the recipe does it under Composer."""

    def __init__(self, network: dict[str, Any], sigma_rels: list[float], fsdp: FSDP | None):
        with torch.device("meta"):
            model = DiffusionModel(Precond(**network), sigma_rels)
        if fsdp is not None:
            model.net.unet.activation_checkpointing = fsdp.activation_checkpointing
            shard_(model, fsdp, "cpu")
        model.to_empty(device="cpu")
        model.initialize_(seed=0)
        self.model: nn.Module = model
        if fsdp is None and dist.get_world_size() > 1:
            self.model = prepare_ddp_module(model, find_unused_parameters=False)
        self.optimizer = torch.optim.Adam(model.parameters_to_train(), fused=True)

    def step(self, images: int, microbatches: int) -> None:
        inner = unwrap(self.model)
        size = inner.net.img_resolution
        self.optimizer.zero_grad(set_to_none=True)
        for index in range(microbatches):
            batch: Batch = {
                "image": torch.zeros(images, inner.net.img_channels, size, size),
                "label": torch.zeros(images, dtype=torch.int64),
                "id": torch.arange(images),
                "sigma": torch.ones(images),
                "noise": torch.randn(images, inner.net.img_channels, size, size),
            }
            waits = isinstance(self.model, DistributedDataParallel) and index + 1 < microbatches
            with self.model.no_sync() if waits else contextlib.nullcontext():  # pyright: ignore
                inner.loss(self.model(batch), batch)["total"].backward()
        self.optimizer.step()
        for _, average in inner.averages():
            update_ema_(list(average.parameters()), list(inner.net.parameters()), 0.9)

    def held(self) -> dict[str, int]:
        inner = unwrap(self.model)
        averages = [parameter for _, average in inner.averages() for parameter in average.parameters()]
        moments = [state[name] for state in self.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
        return {
            "weights": stored(inner.net.parameters()),
            "gradients": stored(parameter.grad for parameter in inner.net.parameters()),
            "Adam": stored(moments),
            "averages": stored(averages),
            "buffers": stored(inner.buffers()),
        }


@contextlib.contextmanager
def counted(model: nn.Module) -> Iterator[dict[str, float]]:
    """Bytes that ring collectives make this rank send, by kind, and those in DDP's buckets."""
    sent = {"shards": 0.0, "replicas": 0.0, "DDP buckets": 0.0}
    originals = {name: getattr(torch.distributed, name) for name in NAMES}

    def wrap(name: str, original: Callable) -> Callable:
        def call(*args, **kwargs):
            group = kwargs.get("group")
            ranks = torch.distributed.get_world_size(group)
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            turns = 2 if name == "all_reduce" else 1
            sent[NAMES[name]] += turns * max(tensor.nbytes for tensor in tensors) * (ranks - 1) / ranks
            return original(*args, **kwargs)

        return call

    def hook(_: object, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        ranks = dist.get_world_size()
        sent["DDP buckets"] += bucket.buffer().nbytes
        sent["replicas"] += 2 * bucket.buffer().nbytes * (ranks - 1) / ranks
        return default_hooks.allreduce_hook(torch.distributed.group.WORLD, bucket)  # pyright: ignore

    if isinstance(model, DistributedDataParallel):
        model.register_comm_hook(None, hook)
    else:
        for name, original in originals.items():
            setattr(torch.distributed, name, wrap(name, original))
    try:
        yield sent
    finally:
        for name, original in originals.items():
            setattr(torch.distributed, name, original)


NAMES = {"all_gather_into_tensor": "shards", "reduce_scatter_tensor": "shards", "all_reduce": "replicas"}


def peak_of(act: Callable[[], object]) -> int:
    """Most bytes that `act` has PyTorch's allocator hold at once, beyond those from before."""
    return max(live for live, _ in _timeline(act))


class _Marked(TorchDispatchMode):
    """Puts a mark into the profile where an operation has ended."""

    def __torch_dispatch__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        with torch.profiler.record_function(MARK):
            return out


MARK = "operation has ended"


def peak_between_operations(act: Callable[[], object]) -> int:
    """Most bytes that PyTorch's allocator holds for `act` after an operation.

    What an operation frees before it ends is its scratch memory: how much that is depends on the kernels that PyTorch
    and oneDNN choose for a processor.
    """

    def marked() -> None:
        with _Marked():
            act()

    found = [live for live, ended in _timeline(marked) if ended]
    assert len(found) > 100
    return max(found)


def _timeline(act: Callable[[], object]) -> list[tuple[int, bool]]:
    """Bytes held beyond those from before, at each change of it and each mark; and whether it is a mark."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        act()
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() in ("[memory]", MARK)]
    timeline, live = [], 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        ended = event.name() == MARK
        live += 0 if ended else event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
        timeline.append((live, ended))
    return timeline


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """What one case holds, has in memory, peaks at and sends on this rank."""
    fsdp = None if case["fsdp"] is None else FSDP(**case["fsdp"])
    images, microbatches = case["images"], case["microbatches"]
    before = resident()
    run = Run(case["network"], case["sigma_rels"], fsdp)
    run.step(images, microbatches)
    held = run.held()
    found: dict[str, Any] = {"held": held, "resident": resident() - before}
    # A step frees the last one's gradients before it makes its own.
    found["peak"] = sum(held.values()) - held["gradients"] + peak_of(lambda: run.step(images, microbatches))
    with counted(run.model) as found["sent"]:
        run.step(images, microbatches)
    return found


def main() -> None:
    cases, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    dist.initialize_dist("cpu")
    for case in cases:
        measure(case | {"network": SMALL})  # loads libraries and opens connections
    (out / f"rank{dist.get_global_rank()}.json").write_text(json.dumps([measure(case) for case in cases]))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
