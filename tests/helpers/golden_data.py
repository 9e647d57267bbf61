"""Reads the reference numbers in tests/golden/."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden"


def load(name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of tests/golden/<name>.safetensors."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 (not a dict)


def load_schedules() -> dict:
    return json.loads((GOLDEN / "schedules.json").read_text())


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below `prefix/`; scalars (published gains) get our shape [1]."""
    found = {key.removeprefix(prefix + "/"): value for key, value in tensors.items() if key.startswith(prefix + "/")}
    return {key: value.reshape(1) if value.ndim == 0 else value for key, value in found.items()}


def relative_error(ours: Tensor, reference: Tensor) -> float:
    difference = ours.double() - reference.double()
    return float(difference.norm() / reference.double().norm())


def check_final_weights(ours: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor]) -> None:
    """All together within 1e-4, the worst tensor within 1e-2: gains are small, and float32 moves them by 3e-3."""
    assert ours.keys() == reference.keys()
    flat_ours = torch.cat([ours[name].detach().flatten() for name in reference])
    flat_reference = torch.cat([value.flatten() for value in reference.values()])
    assert relative_error(flat_ours, flat_reference) <= 1e-4
    for name, value in reference.items():
        assert relative_error(ours[name].detach(), value) <= 1e-2, name
