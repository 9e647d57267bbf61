"""Floating-point formats by name, and which one the network's activations have."""

import torch

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def activations_dtype(name: str, on_gpu: bool) -> str:
    """Name of the activations' dtype: `name` itself, or float16 on GPUs and float32 on CPUs if it is "auto"."""
    if name == "auto":
        return "float16" if on_gpu else "float32"
    return name
