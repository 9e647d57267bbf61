"""Magnitude-preserving layers: unit-magnitude inputs give unit-magnitude outputs (Sections 2.2-2.5, Appendix B).

Equation numbers are those of arXiv 2312.02696v2.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipe.edm2.sharded_tensors import local

EPS = 1e-4  # added to the RMS outside the root (Algorithm 1), so that an all-zero vector stays zero


def normalize(x: Tensor, dim: int | Sequence[int] | None = None, eps: float = EPS) -> Tensor:
    """Scale `x` to unit RMS along `dim`: x / (rms(x) + eps); PixelNorm (eq. 30) for dim=1, Algorithm 1 for weights.

    The norm is computed in float32 whatever the dtype of `x`; the result has the dtype of `x`.

    Args:
        x: any floating-point tensor.
        dim: dimensions that one norm spans; None means all but the first (one norm per output unit of a weight).
        eps: keeps the division finite.
    """
    return x * inverse_rms(x, dim, eps).to(x.dtype)


def inverse_rms(x: Tensor, dim: int | Sequence[int] | None = None, eps: float = EPS) -> Tensor:
    """The float32 factor 1 / (rms(x) + eps) by which `normalize` scales, with size 1 along `dim`."""
    if dim is None:
        dim = list(range(1, x.ndim))
    elif isinstance(dim, int):
        dim = [dim]
    count = math.prod(x.shape[d] for d in dim)
    return 1 / (torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=torch.float32) * count**-0.5 + eps)


def mp_silu(x: Tensor) -> Tensor:
    """SiLU over 0.596, its RMS for unit normal input (eq. 81)."""
    return F.silu(x) * (1 / 0.596)


def mp_sum(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """Blend `a` and `b` of equal shape by weights 1-t and t, at unit magnitude (eq. 88)."""
    return torch.lerp(a, b, t) / math.sqrt((1 - t) ** 2 + t**2)


def mp_cat(a: Tensor, b: Tensor, dim: int = 1, t: float = 0.5) -> Tensor:
    """Concatenate along `dim` so that `a` and `b` contribute by 1-t and t whatever their widths (eq. 103)."""
    n_a, n_b = a.shape[dim], b.shape[dim]
    scale = math.sqrt((n_a + n_b) / ((1 - t) ** 2 + t**2))
    return torch.cat([a * (scale * (1 - t) / math.sqrt(n_a)), b * (scale * t / math.sqrt(n_b))], dim=dim)


def resample(x: Tensor, mode: str = "keep") -> Tensor:
    """Halve ("down", 2x2 mean), double ("up", 2x2 repeat) or keep the resolution of `x` [N, C, H, W].

    This is the filter [1, 1] of Appendix B: a box, for which a mean and a repeat are the exact transposes.
    """
    if mode == "keep":
        return x
    if mode == "down":
        return F.avg_pool2d(x, 2)
    if mode == "up":
        return F.interpolate(x, scale_factor=2, mode="nearest")
    raise ValueError(f"resample mode {mode!r} is not one of 'keep', 'down', 'up'")


class MPFourier(nn.Module):
    """Random Fourier features sqrt(2) cos(2 pi (f x + phase)) of a scalar, in float32 (eq. 75).

    Input [N], output [N, num_channels]. Frequencies ~ N(0, bandwidth^2), phases ~ U(0, 1); both are buffers that are
    never trained nor averaged.
    """

    freqs: Tensor
    phases: Tensor

    def __init__(self, num_channels: int, bandwidth: float = 1.0):
        super().__init__()
        self.bandwidth = bandwidth
        self.register_buffer("freqs", torch.empty(num_channels))
        self.register_buffer("phases", torch.empty(num_channels))
        if not self.freqs.is_meta:
            self.load_state_dict(self.initial_state())

    def initial_state(self, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Frequencies and phases drawn anew, on the CPU; None = from torch's global generator."""
        # As in the official code the factors 2 pi are part of the stored numbers, so that published weights load.
        return {
            "freqs": torch.randn(self.freqs.shape, generator=generator, device="cpu") * (2 * math.pi * self.bandwidth),
            "phases": torch.rand(self.phases.shape, generator=generator, device="cpu") * (2 * math.pi),
        }

    def forward(self, x: Tensor) -> Tensor:
        return torch.cos(torch.outer(x.float(), self.freqs.float()) + self.phases.float()) * math.sqrt(2)


class MPConv(nn.Module):
    """Magnitude-preserving convolution, or linear layer if `kernel` is empty, without bias (eq. 47, 66).

    The weight lives at unit RMS per output unit and is normalised again on use, in float32, then divided by
    sqrt(fan_in). Forced weight normalisation (Algorithm 1), the in-place projection of the stored weight, is
    `project_`: it runs outside forward, before each training step, because under FSDP forward sees a gathered copy.

    Args:
        in_channels, out_channels: widths.
        kernel: () for a linear layer on [N, in], (k, k) for a same-size convolution on [N, in, H, W], k odd.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[int] = ()):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *kernel))
        if not self.weight.is_meta:
            self.load_state_dict(self.initial_state())

    def initial_state(self, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """A weight drawn from N(0, 1), on the CPU (Appendix B.4); None = from torch's global generator."""
        return {"weight": torch.randn(self.weight.shape, generator=generator, device="cpu")}

    @torch.no_grad()
    def project_(self) -> None:
        """Scale the stored weight in place to unit RMS per output unit; of a sharded weight, this rank's rows."""
        rows = local(self.weight)
        rows.mul_(inverse_rms(rows))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """Apply to `x`; `gain` is a number or a learned tensor of shape [1] that scales the output."""
        fan_in = self.weight[0].numel()
        # One factor per output unit, so that the weight itself is read and written once.
        weight = (self.weight * (inverse_rms(self.weight) * (gain / math.sqrt(fan_in)))).to(x.dtype)
        if weight.ndim == 2:
            return F.linear(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)
