"""Fresh weights that depend on the seed and on each tensor's name alone, not on devices or shards (Appendix B.4)."""

import hashlib

import torch
from torch import nn

from recipe.edm2.networks.layers import MPConv, MPFourier
from recipe.edm2.sharded_tensors import assign_


def initialize_(net: nn.Module, seed: int) -> None:
    """Fill every parameter and buffer of `net` in place: weights ~ N(0, 1), Fourier features, gains 0.

    One tensor at a time exists whole, on the CPU, so that the largest network fits wherever its shards do.
    """
    for name, module in net.named_modules():
        tensors = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        if isinstance(module, MPConv | MPFourier):
            initial = module.initial_state(named_generator(seed, name))
        else:
            initial = {key: torch.zeros(tensor.shape) for key, tensor in tensors.items()}  # the learned gains
        for key, tensor in tensors.items():
            assign_(tensor, initial[key])


def named_generator(seed: int, name: str) -> torch.Generator:
    """torch's CPU generator, seeded by both."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
