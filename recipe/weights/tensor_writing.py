"""Writes tensors to a safetensors file that others may read."""

import stat
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write CPU tensors, and text entries for the header, with the permissions that the umask gives to new files.

    The library's own file has the mode 0600 (safetensors 0.8): nobody but its owner could read a snapshot on the file
    system that a group shares.
    """
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    path.chmod(mode)
