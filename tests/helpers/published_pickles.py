"""Files in the layouts that the official implementation publishes, of this recipe's networks, written by real pickling.

Modules by the names of the official ones are made for the time of writing; their objects pickle by the same protocol,
and they hold none of its code. `module_src` can be anything, for nothing may run it.
"""

import contextlib
import io
import pickle
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from recipe.edm2.networks.layers import MPConv, MPFourier
from recipe.edm2.networks.precond import Precond
from recipe.edm2.networks.unet import Block, UNet

KINDS = {Precond: "Precond", UNet: "UNet", Block: "Block", MPConv: "MPConv", MPFourier: "MPFourier"}
SOURCE = "raise SystemExit('source code in a pickle was run')"


class EasyDict(dict):
    """A dictionary by the name of dnnlib's."""


EasyDict.__module__ = "dnnlib.util"


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
    raise AssertionError("an object of a published file was rebuilt")


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


class Persistent:
    """Pickles as an object of the class `kind` with the attributes `state`."""

    def __init__(self, kind: str, state: dict[str, Any], source: str = SOURCE):
        self.meta = dict(type="class", version=6, module_src=source, class_name=kind, state=state)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reconstruct_persistent_obj, (self.meta,), None


@contextlib.contextmanager
def official_modules() -> Iterator[None]:
    """Let pickle find the names above where the official implementation has them."""
    modules = {
        name: types.ModuleType(name) for name in ("dnnlib", "dnnlib.util", "torch_utils", "torch_utils.persistence")
    }
    modules["dnnlib.util"].EasyDict = EasyDict  # pyright: ignore[reportAttributeAccessIssue]
    modules["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj  # pyright: ignore
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            sys.modules.pop(name, None)


def persistent(module: nn.Module, arguments: Mapping[str, Any], source: str = SOURCE) -> Any:
    """A network of this recipe as the published classes pickle: float16, gains of shape []."""
    if isinstance(module, nn.ModuleDict):
        copy = nn.ModuleDict()
        copy._modules.update({name: persistent(child, {}) for name, child in module._modules.items() if child})  # pyright: ignore
        return copy
    state = {name: value for name, value in vars(module).items() if name not in ("dtype", "blocks")}
    parameters = {name: scalar(value) for name, value in module._parameters.items() if value is not None}
    buffers = {name: value.half() for name, value in module._buffers.items() if value is not None}
    children = {name: persistent(child, {}) for name, child in module._modules.items() if child is not None}
    state |= dict(_parameters=parameters, _buffers=buffers, _modules=children)
    state |= dict(_init_args=(), _init_kwargs=dict(arguments), use_fp16=True)
    return Persistent(KINDS[type(module)], state, source)


def scalar(parameter: nn.Parameter) -> nn.Parameter:
    half = parameter.detach().half()
    return nn.Parameter(half.reshape([]) if half.shape == (1,) else half, requires_grad=False)


def rgb_encoder() -> Persistent:
    return Persistent("StandardRGBEncoder", {"_init_args": (), "_init_kwargs": {}})


def vae_encoder(**arguments: Any) -> Persistent:
    """An encoder as those of latents pickle; it holds NumPy arrays."""
    attributes = {
        "vae_name": "stabilityai/sd-vae-ft-mse",
        "scale": np.array([0.1, 0.2], np.float32),
        "batch_size": 8,
        "_vae": None,
    }
    return Persistent("StabilityVAEEncoder", attributes | {"_init_args": (), "_init_kwargs": arguments})


def snapshot_table(net: Precond, arguments: Mapping[str, Any], encoder: Any = None, source: str = SOURCE) -> EasyDict:
    """What a published file holds."""
    loss = Persistent("EDM2Loss", {"P_mean": -0.4, "P_std": 1.0, "_init_args": (), "_init_kwargs": {}})
    dataset = EasyDict(class_name="training.dataset.ImageFolderDataset", path="data.zip", use_labels=True)
    ema = persistent(net, {**arguments, "use_fp16": True}, source)
    return EasyDict(encoder=encoder or rgb_encoder(), dataset_kwargs=dataset, loss_fn=loss, ema=ema)


def pickled(value: Any, protocol: int = 4) -> bytes:
    with official_modules():
        return pickle.dumps(value, protocol)


def write_published(path: Path, net: Precond, arguments: Mapping[str, Any], encoder: Any = None) -> Path:
    path.write_bytes(pickled(snapshot_table(net, arguments, encoder)))
    return path


def training_table(net: Precond, averages: Mapping[float, Precond], nimg: int) -> dict[str, Any]:
    """What a training state holds."""
    optimizer = torch.optim.Adam([parameter.requires_grad_(True) for parameter in net.parameters()])
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    emas = [published_state(average) for average in averages.values()]
    return dict(
        state=EasyDict(cur_nimg=nimg, total_elapsed_time=1.5),
        net=published_state(net),
        loss_fn={"P_mean": -0.4, "P_std": 1.0, "_init_kwargs": EasyDict(P_mean=-0.4)},
        optimizer=optimizer.state_dict(),
        ema=dict(stds=list(averages), emas=emas),
    )


def published_state(net: Precond) -> dict[str, Any]:
    """The state dict with gains of shape [], and the attribute that torch gives such dictionaries."""
    state = net.state_dict()
    for name, tensor in state.items():
        state[name] = tensor.detach().reshape([]) if tensor.shape == (1,) else tensor.detach()
    return state


def archived(value: Any) -> bytes:
    buffer = io.BytesIO()
    with official_modules():
        torch.save(value, buffer)
    return buffer.getvalue()
