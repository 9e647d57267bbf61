"""Networks that the official implementation of EDM2 published or trained, as snapshots of this recipe.

Its snapshots are plain pickles of a table with `ema` (the network), `encoder`, `dataset_kwargs` and `loss_fn`; weights
are in float16. They are read as data (`recipe.weights.inert_pickles`): neither the source code that they carry nor any
name in them is run or looked up.
"""

import contextlib
import mmap
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from recipe.command_line import UserError
from recipe.data.facts import LATENTS, PIXELS, DataFacts
from recipe.edm2.latents import STABLE_DIFFUSION, Whitening
from recipe.edm2.networks.kinds import build_network
from recipe.weights.inert_pickles import ForeignName, PickleError, one_line, read_pickle
from recipe.weights.official_layout import NAMES, NETWORK, Published, named_tensors, published, table
from recipe.weights.pickled_tensors import EmbeddedStorages, tensor_from

KIND = "G"  # the one configuration that the official implementation has
PRECOND_ARGUMENTS = ("img_resolution", "img_channels", "label_dim", "use_fp16", "sigma_data", "logvar_channels")
VAE_ARGUMENTS = ("vae_name", "raw_mean", "raw_std", "final_mean", "final_std", "batch_size")
ENCODERS = {"StandardRGBEncoder": PIXELS, "StabilityVAEEncoder": LATENTS}
_COUNTS = {  # largest values that are believed, each far above every published network's
    "img_resolution": 4096, "img_channels": 256, "label_dim": 10**6, "model_channels": 8192, "num_blocks": 32,
    "logvar_channels": 65536, "channel_mult_noise": 64, "channel_mult_emb": 64, "channels_per_head": 8192,
}  # fmt: skip
_LISTS = {"channel_mult": 64, "attn_resolutions": 4096}
_SHARES = ("dropout", "label_balance", "concat_balance", "res_balance", "attn_balance")
_TIME_AND_LENGTH = re.compile(r"-(?P<kimg>\d{1,9})-(?P<sigma_rel>0\.\d{3})\.pkl")


class OfficialError(UserError):
    """A file that holds no network which this recipe knows; the message names the file and what is wrong."""


@dataclass(frozen=True)
class OfficialNetwork:
    """A network with what its file says of it.

    Attributes:
        tensors: by the names of this recipe; parameters as they are stored, buffers in float32, gains of shape [1].
        network: arguments of `build_network`, without `dtype`.
        facts: of the data that it was trained on, as far as the encoder tells.
    """

    tensors: dict[str, Tensor]
    network: dict[str, Any]
    facts: DataFacts


def read_official(path: Path) -> OfficialNetwork:
    """The network of a local `.pkl` file.

    Raises:
        OfficialError: the file is damaged, names foreign code, or holds no network of EDM2.
        OSError: it cannot be read.
    """
    with refusing(path), open(path, "rb") as file:
        if path.stat().st_size == 0:
            raise PickleError("no bytes")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            top = table(read_pickle(data, NAMES))
            if data.read(1):
                raise PickleError("bytes behind its end")
        if top is None:
            raise OfficialError(f"{path}: holds no table with a network `ema`; convert.py reads snapshots of EDM2")
        if top.get("ema") is None:
            held = f", only {', '.join(one_line(key) for key in list(top)[:8])}" if top else ""
            raise OfficialError(f"{path}: holds no network{held}; name a file with `ema`, such as edm2-*.pkl")
        module = published(top["ema"])
        if module is None or module.kind != NETWORK:
            kind = "something else" if module is None else module.kind
            raise OfficialError(
                f"{path}: holds a network of class {kind}, but this recipe has {NETWORK} of EDM2 alone; EDM's and "
                "other projects' networks cannot be converted"
            )
        network = network_arguments(module)
        storages = EmbeddedStorages()
        tensors = {name: tensor_from(value, storages, one_line(name)) for name, value in named_tensors(top["ema"])}
        return OfficialNetwork(fitted(tensors, network), network, _facts(top.get("encoder"), network))


@contextlib.contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turn what can be wrong with a pickle into an OfficialError."""
    try:
        yield
    except ForeignName as error:
        raise OfficialError(
            f"{path}: its pickle names {error}, which no snapshot of EDM2 needs; nothing of it was run: find out where "
            "it comes from"
        ) from None
    except PickleError as error:
        raise OfficialError(f"{path}: is damaged or no snapshot of EDM2 (it has {error}); fetch it again") from None


def network_arguments(module: Published) -> dict[str, Any]:
    """Arguments of `build_network` for a published network. Raises PickleError for those that it cannot have."""
    given = module.arguments(PRECOND_ARGUMENTS)
    given.pop("use_fp16", None)  # precision is chosen where a network is used
    if given.pop("resample_filter", [1, 1]) != [1, 1]:
        raise PickleError("a resample_filter other than [1, 1], which this recipe does not have")
    arguments: dict[str, Any] = {}
    for name, value in given.items():
        arguments[name] = checked_argument(name, list(value) if isinstance(value, tuple) else value)
    missing = {"img_resolution", "img_channels", "label_dim"} - arguments.keys()
    if missing:
        raise PickleError(f"no argument {min(missing)}")
    return arguments


def checked_argument(name: str, value: Any) -> Any:
    """The argument if a network can have it; raises PickleError before anything of absurd size is built."""
    if name in _COUNTS:
        good = type(value) is int and (1 if name != "label_dim" else 0) <= value <= _COUNTS[name]
        good = good or (value is None and name in ("channel_mult_noise", "channel_mult_emb"))
    elif name in _LISTS:
        good = isinstance(value, list) and len(value) <= 16 and (bool(value) or name == "attn_resolutions")
        good = good and all(type(entry) is int and 1 <= entry <= _LISTS[name] for entry in value)
    elif name in _SHARES:
        good = type(value) in (int, float) and 0 <= value <= 1
    elif name in ("sigma_data", "clip_act"):
        good = (type(value) in (int, float) and 0 < value < 1e6) or (value is None and name == "clip_act")
    else:
        raise PickleError(f"the argument {one_line(name)}, which the network of this recipe does not have")
    if not good:
        raise PickleError(f"the argument {name} with a value that it cannot have")
    return value


def fitted(tensors: Mapping[str, Tensor], network: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors in the shapes and order of the recipe's network of those arguments, buffers in float32.

    Raises:
        PickleError: names or shapes that are not the network's, or numbers that are not finite.
    """
    try:
        with torch.device("meta"):
            net = build_network(KIND, **network)
    except (TypeError, ValueError) as error:
        raise PickleError(f"arguments that contradict each other: {one_line(error)}") from None
    own, buffers = net.state_dict(), {name for name, _ in net.named_buffers()}
    if odd := sorted(own.keys() ^ tensors.keys()):
        fault = "no" if odd[0] in own else "the further"
        raise PickleError(f"{fault} tensor {odd[0]} for the network that it describes")
    fitting = {}
    for name, wanted in own.items():
        tensor = tensors[name]
        if tuple(tensor.shape) not in (tuple(wanted.shape), () if tuple(wanted.shape) == (1,) else tuple(wanted.shape)):
            raise PickleError(f"{name} of shape {list(tensor.shape)}, where its network needs {list(wanted.shape)}")
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise PickleError(f"{name} with numbers that are not finite")
        # The published gains are [], which FSDP2 cannot shard.
        fitting[name] = tensor.reshape(wanted.shape).to(torch.float32 if name in buffers else tensor.dtype)
    return fitting


def _facts(encoder: object, network: dict[str, Any]) -> DataFacts:
    """What the encoder tells of the data: pixels or latents, and how latents are whitened."""
    shape = {name: network[name] for name in ("img_resolution", "img_channels", "label_dim")}
    found = published(encoder)
    kind = None if found is None else ENCODERS.get(found.kind)
    if found is None or kind is None:
        return DataFacts(**shape)
    if kind == PIXELS:
        return DataFacts(kind=PIXELS, **shape)
    given = found.arguments(VAE_ARGUMENTS)
    mean, std = (given.get(f"raw_{name}", getattr(STABLE_DIFFUSION, name)) for name in ("mean", "std"))
    if given.get("final_mean", 0) != 0 or given.get("final_std", 0.5) != 0.5:
        raise PickleError("latents that are scaled to another mean than 0 or another deviation than 0.5")
    whitening = Whitening(_numbers(mean, network["img_channels"]), _numbers(std, network["img_channels"]))
    if min(whitening.std) <= 0:
        raise PickleError("a whitening by what is not positive")
    vae = given.get("vae_name", "stabilityai/sd-vae-ft-mse")
    if not isinstance(vae, str):
        raise PickleError("an autoencoder whose name is no text")
    return DataFacts(kind=LATENTS, vae=one_line(vae), whitening=whitening, **shape)


def _numbers(values: object, count: int) -> tuple[float, ...]:
    if not isinstance(values, list | tuple) or not all(type(v) in (int, float) and abs(v) < 1e6 for v in values):
        raise PickleError("a whitening that is no list of numbers")
    if len(values) != count:
        raise PickleError(f"a whitening for {len(values)} channels, but a network of {count}")
    return tuple(float(value) for value in values)


def time_and_length(name: str) -> tuple[int, float] | None:
    """Images seen and sigma_rel that the name of a published file tells; None if it does not.

    `edm2-img512-xs-2147483-0.135.pkl` is after 2147483 thousand images, rounded down: that is 2147483648 = 2 Gi, for
    the official snapshots are taken at multiples of 2^20 images.
    """
    match = _TIME_AND_LENGTH.search(PurePosixPath(name).name)
    if match is None or match.end() != len(PurePosixPath(name).name):
        return None
    thousands = int(match["kimg"])
    aligned = -(-thousands * 1000 // 2**20) * 2**20
    return (aligned if aligned // 1000 == thousands else thousands * 1000), float(match["sigma_rel"])
