"""Fresh weights: what they are drawn from, and that no layer and no seed has another's."""

import math
from itertools import combinations
from typing import Any

import torch

from recipe.edm2.networks.initialize import initialize_
from recipe.edm2.networks.precond import Precond

NETWORK: dict[str, Any] = dict(
    img_resolution=8,
    img_channels=2,
    label_dim=10,
    model_channels=32,
    channel_mult=[1, 2],
    num_blocks=1,
    attn_resolutions=[4],
    channels_per_head=16,
    augment_dim=9,
)


def drawn(seed: int, **changes: Any) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        net = Precond(**(NETWORK | changes))
    net.to_empty(device="cpu")
    initialize_(net, seed)
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def correlation(one: torch.Tensor, other: torch.Tensor) -> tuple[float, float]:
    """Of the first elements that both have, and its standard error."""
    n = min(one.numel(), other.numel())
    pair = torch.stack([one.flatten()[:n], other.flatten()[:n]]).double()
    return abs(float(torch.corrcoef(pair)[0, 1])), n**-0.5


def test_what_they_are_drawn_from():
    for name, tensor in drawn(seed=1).items():
        n = tensor.numel()
        if name.endswith("gain"):
            assert torch.equal(tensor, torch.zeros(1)), name
        elif name.endswith("phases"):
            assert tensor.min() >= 0 and tensor.max() <= 2 * math.pi, name
            assert abs(tensor.mean() - math.pi) < 5 * 2 * math.pi * (12 * n) ** -0.5, name
        else:
            std = 2 * math.pi if name.endswith("freqs") else 1
            assert abs(tensor.mean()) < 5 * std * n**-0.5, name
            assert abs(tensor.std() / std - 1) < 5 * (2 * n) ** -0.5, name


def test_no_layer_has_the_numbers_of_another():
    tensors = {name: tensor for name, tensor in drawn(seed=1).items() if not name.endswith("gain")}
    assert len(tensors) > 20
    for one, other in combinations(tensors, 2):
        found, error = correlation(tensors[one], tensors[other])
        assert found < 5 * error, (one, other)


def test_no_seed_has_the_numbers_of_another():
    first, second, again = drawn(seed=1), drawn(seed=2), drawn(seed=1)
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name]), name
        if not name.endswith("gain"):
            found, error = correlation(tensor, second[name])
            assert found < 5 * error, name


def test_a_layer_does_not_depend_on_others_nor_on_torchs_generator():
    torch.manual_seed(0)
    whole = drawn(seed=1)
    torch.manual_seed(1)
    other = drawn(seed=1, label_dim=0, augment_dim=0, attn_resolutions=[])
    assert 20 < len(other) < len(whole)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in other.items())
