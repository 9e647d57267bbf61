"""Training states of the official implementation: `training-state-*.pt`, written by torch.save.

One holds a table with `state` (the clock), `net` (the raw weights), `loss_fn`, the optimizer's state, and `ema`:
`stds`, the lengths of the averages, and `emas`, their weights. The optimizer's state numbers the parameters in their
order in the network, which is that of the weights' names.

The network's arguments are not in it. They follow from the names and shapes of the weights; those that leave no trace
there (heads of 64 channels, balances, clipping, sigma_data) are taken to be as the published networks have them.
"""

import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from recipe.weights.inert_pickles import PickleError, one_line
from recipe.weights.moments import Moments
from recipe.weights.official import KIND, OfficialError, checked_argument, fitted, refusing
from recipe.weights.official_layout import NAMES, table
from recipe.weights.pickled_tensors import ArchivedStorages, open_archive, tensor_from
from recipe.weights.snapshots import buffer_names

_FIRST = re.compile(r"unet\.enc\.(\d{1,5})x\1_conv\.weight")
_BLOCK = re.compile(r"unet\.enc\.(\d{1,5})x\1_block(\d{1,4})\.conv_res1\.weight")
_ATTENTION = re.compile(r"unet\.enc\.(\d{1,5})x\1_block\d{1,4}\.attn_qkv\.weight")


@dataclass(frozen=True)
class OfficialTraining:
    """A training state.

    Attributes:
        network: arguments of `build_network`, without `dtype`, as far as the weights tell them.
        nimg: images seen.
        weights: raw ones, as `OfficialNetwork.tensors`.
        averages: by sigma_rel.
        moments: None if the file has none.
    """

    network: dict[str, Any]
    nimg: int
    weights: dict[str, Tensor]
    averages: dict[float, dict[str, Tensor]]
    moments: Moments | None = None


def read_training_state(path: Path, network: dict[str, Any] | None = None) -> OfficialTraining:
    """A local `.pt` file.

    Args:
        network: arguments of `build_network` from a snapshot of the same run; None = as the weights tell them.

    Raises:
        OfficialError: it is damaged, names foreign code, or is no training state of EDM2.
        OSError: it cannot be read.
    """
    with refusing(path), open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                top, storages = open_archive(archive, path.stat().st_size, NAMES)
                return _read(path, table(top), storages, network)
        except (OfficialError, PickleError):
            raise
        except Exception as error:  # a directory of garbage can raise anything: it is refused all the same
            raise PickleError(f"no whole archive: {type(error).__name__}") from None


def _read(
    path: Path, top: Mapping[object, object] | None, storages: ArchivedStorages, network: dict[str, Any] | None
) -> OfficialTraining:
    parts = {name: None if top is None else table(top.get(name)) for name in ("state", "net", "ema")}
    missing = [name for name, part in parts.items() if part is None]
    state, weights, ema = parts.values()
    if state is None or weights is None or ema is None:
        raise OfficialError(
            f"{path}: is no training state of EDM2, which holds state, net and ema (missing: {', '.join(missing)}); "
            "name a training-state-*.pt file"
        )
    nimg, lengths, averages = state.get("cur_nimg"), ema.get("stds"), ema.get("emas")
    if type(nimg) is not int or not 0 <= nimg < 2**48:
        raise PickleError("no clock cur_nimg")
    if not isinstance(lengths, list) or not isinstance(averages, list) or len(lengths) != len(averages) > 16:
        raise PickleError("averages without their lengths")
    if not all(type(length) is float and 0 < length < 0.2887 for length in lengths) or len(set(lengths)) < len(lengths):
        raise PickleError("averages of impossible lengths")
    raw = _tensors(weights, storages)
    if network is None:
        network = network_from_shapes({name: tuple(tensor.shape) for name, tensor in raw.items()})
        if any(multiple * network["model_channels"] % 64 for multiple in network["channel_mult"]):
            raise OfficialError(
                f"{path}: does not say the width of its attention heads, which cannot be the published 64 here; name a "
                ".pkl of the same run by --network"
            )
    fitting = {length: _tensors(part, storages) for length, part in zip(lengths, averages, strict=True)}
    own = fitted(raw, network)
    trained = [name for name in raw if name not in buffer_names(network, KIND)]
    return OfficialTraining(
        network,
        nimg,
        own,
        {length: fitted(tensors, network) for length, tensors in fitting.items()},
        _moments(None if top is None else top.get("optimizer"), {name: own[name] for name in trained}, storages),
    )


def _moments(part: object, parameters: Mapping[str, Tensor], storages: ArchivedStorages) -> Moments | None:
    """Adam's state by the names of the parameters, which are in the network's order."""
    optimizer = table(part) or {}
    states, groups = table(optimizer.get("state")), optimizer.get("param_groups")
    if not states:
        return None
    group = table(groups[0]) if isinstance(groups, list) and len(groups) == 1 else None
    if group is None or group.get("params") != list(range(len(parameters))):
        raise PickleError("an optimizer of other parameters than the network's")
    steps: set[int] = set()
    found: dict[str, dict[str, Tensor]] = {"exp_avg": {}, "exp_avg_sq": {}}
    for index, (name, parameter) in enumerate(parameters.items()):
        entry = table(states.get(index)) or {}
        if entry.keys() != {"step", *found}:
            raise PickleError(f"an optimizer other than Adam, or no moments of {name}")
        steps.add(_step(entry["step"], storages))
        for kind, moments in found.items():
            tensor = tensor_from(entry[kind], storages, f"{kind} of {name}")
            if tensor.numel() != parameter.numel() or not bool(tensor.isfinite().all()):
                raise PickleError(f"{kind} of {name} of another shape, or not finite")
            moments[name] = tensor.reshape(parameter.shape).float()
    if len(steps) != 1:
        raise PickleError("parameters that Adam has updated more or less often than others")
    return Moments(steps.pop(), **found)


def _step(value: object, storages: ArchivedStorages) -> int:
    step = value if type(value) in (int, float) else tensor_from(value, storages, "Adam's step").item()
    if not isinstance(step, int | float) or not 0 < step < 2**48 or step != int(step):
        raise PickleError("a number of updates that cannot be")
    return int(step)


def _tensors(part: object, storages: ArchivedStorages) -> dict[str, Tensor]:
    entries = table(part)
    if entries is None:
        raise PickleError("weights that are no table")
    return {str(name): tensor_from(value, storages, one_line(name)) for name, value in entries.items()}


def network_from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Arguments of `build_network` that give a network weights of these names and shapes, where they tell.

    Raises:
        PickleError: they are not those of a network of EDM2.
    """
    first = [int(found[1]) for name in shapes if (found := _FIRST.fullmatch(name))]
    blocks = {name: (int(found[1]), int(found[2])) for name in shapes if (found := _BLOCK.fullmatch(name))}
    levels = sorted({res for res, _ in blocks.values()}, reverse=True)
    needed = ("unet.out_conv.weight", "logvar_fourier.freqs")
    if len(shapes.get("unet.emb_noise.weight", ())) != 2 or not all(shapes.get(name) for name in needed):
        raise PickleError("weights of another network than EDM2's")
    if len(first) != 1 or not levels or levels[0] != first[0]:
        raise PickleError("weights of another network than EDM2's")
    widths = [next(shapes[name][0] for name, (res, _) in blocks.items() if res == level) for level in levels]
    embedding, noise = shapes["unet.emb_noise.weight"][:2]
    # The base width is not stored, and any divisor of all widths serves: only its products with the multipliers count.
    base = max(math.gcd(*widths, embedding, noise), 1)
    label = shapes.get("unet.emb_label.weight", (0, 0))
    arguments = {
        "img_resolution": first[0],
        "img_channels": shapes["unet.out_conv.weight"][0],
        "label_dim": label[1] if len(label) == 2 else 0,
        "model_channels": base,
        "channel_mult": [width // base for width in widths],
        "channel_mult_noise": noise // base,
        "channel_mult_emb": embedding // base,
        "num_blocks": 1 + max(index for _, index in blocks.values()),
        "attn_resolutions": sorted(
            {int(found[1]) for name in shapes if (found := _ATTENTION.fullmatch(name))}, reverse=True
        ),
        "logvar_channels": shapes["logvar_fourier.freqs"][0],
    }
    return {name: checked_argument(name, value) for name, value in arguments.items()}
