"""Adam's state of a training elsewhere, beside its raw weights and averages: what a run goes on from.

    weights-00008388608.safetensors  snapshot-00008388608-0.050.safetensors ...  adam-00008388608.safetensors

The last one is a file like a snapshot, with the tensors `exp_avg/NAME` and `exp_avg_sq/NAME` of each parameter.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

STEP = "adam_step"  # updates so far, among the snapshot's further entries
KINDS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Moments:
    """Adam's state.

    Attributes:
        step: updates so far.
        exp_avg, exp_avg_sq: moving averages of each parameter's gradient and of its square, in the parameter's shape.
    """

    step: int
    exp_avg: Mapping[str, Tensor]
    exp_avg_sq: Mapping[str, Tensor]


def weights_name(nimg: int) -> str:
    """File of the raw weights."""
    return f"weights-{nimg:011d}.safetensors"


def moments_name(nimg: int) -> str:
    """File of Adam's state."""
    return f"adam-{nimg:011d}.safetensors"


def moments_tensors(moments: Moments) -> dict[str, Tensor]:
    """What that file holds."""
    return {f"{kind}/{name}": tensor for kind in KINDS for name, tensor in getattr(moments, kind).items()}
