"""Weights as plain state dicts under the published names, for programs that know EDM2 and not this recipe."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from recipe.weights.tensor_writing import save_tensors

FORMATS = (".safetensors", ".pt")


def published_shapes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a snapshot as the published network has them: the names are the same, gains have shape []."""
    return {name: tensor.reshape([]) if name.endswith("gain") else tensor for name, tensor in tensors.items()}


def write_state_dict(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and nothing else: `.pt` for `torch.load(..., weights_only=True)`, or `.safetensors`."""
    if path.suffix == ".pt":
        with open(path, "wb") as file:  # by its path torch would name the archive after a temporary file
            torch.save(dict(tensors), file)
    else:
        save_tensors(path, tensors)
