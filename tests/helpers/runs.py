"""What runs leave behind, for comparing them: losses, final weights, averages."""

import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from recipe.storage.places import Place


def losses(folder: Path) -> dict[int, float]:
    """The training loss by step, over all starts of a run; of a step that was trained twice, the later one."""
    found = {}
    for path in sorted(folder.glob("tensorboard/**/events*"), key=lambda path: path.stat().st_mtime):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
        if "loss/train/total" in events.Tags()["scalars"]:
            found |= {event.step: event.value for event in events.Scalars("loss/train/total")}
    return found


def state(folder: Path) -> dict[str, Tensor]:
    """The tensors of a run's newest checkpoint, whole: weights and averages by name, Adam's moments too."""
    paths = [path for path in (folder / "checkpoints").iterdir() if "ba" in path.name]
    newest = max(paths, key=lambda path: int(path.name.split("ba")[1].split("-")[0]))
    if newest.is_file():
        content = torch.load(newest, weights_only=False, map_location="cpu")["state"]
        moments = content["optimizers"]["Adam"]["state"]
        flat = {f"{name}.{key}": value for name, values in moments.items() for key, value in values.items()}
        return dict(content["model"]) | flat
    kinds = FileSystemReader(newest).read_metadata().state_dict_metadata
    wanted = {
        key: torch.empty(kind.size, dtype=kind.properties.dtype)
        for key, kind in kinds.items()
        if isinstance(kind, TensorStorageMetadata) and key.startswith(("state.model.", "state.optimizers."))
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is one process
        load(wanted, storage_reader=FileSystemReader(newest), no_dist=True)
    starts = ("state.model.", "state.optimizers.Adam.state.")
    return {key.removeprefix(starts[0]).removeprefix(starts[1]): value for key, value in wanted.items()}


def snapshots(folder: Path) -> dict[str, dict[str, Tensor]]:
    """The stored averages, by file name."""
    return {path.name: load_file(path) for path in sorted((folder / "snapshots").iterdir())}


def stored_snapshots(place: Place) -> dict[str, bytes]:
    """The snapshot files of a run, local or in object storage, by name."""
    return {entry.name: place.read(entry.name) for entry in place.list("snapshots/")}


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Relative L2 difference of all tensors together."""
    assert a.keys() == b.keys()
    squared = sum(float((a[key].double() - b[key].double()).square().sum()) for key in a)
    return (squared / sum(float(a[key].double().square().sum()) for key in a)) ** 0.5


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key: value for key, value in tensors.items() if key.startswith(prefix) and not key.endswith((".step",))}
