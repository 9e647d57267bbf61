"""Each balance weighs its own branch: as two pairs have equal defaults, their mix-up would not show otherwise."""

from itertools import product
from typing import Any

import pytest
import torch

from recipe.edm2.networks.layers import mp_cat
from recipe.edm2.networks.unet import UNet

SMALL: dict[str, Any] = dict(
    img_resolution=8,
    img_channels=2,
    label_dim=3,
    model_channels=16,
    channel_mult=[1, 2],
    num_blocks=1,
    attn_resolutions=[4],
    channels_per_head=16,
)
LABELS, NOISE = torch.tensor([0, 1]), torch.tensor([-0.3, 0.4])


def unet(**balances: Any) -> UNet:
    torch.manual_seed(1)
    net = UNet(**(SMALL | balances))
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("gain"):
                parameter.fill_(1)
    return net.eval()


def images() -> torch.Tensor:
    return torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(2))


def disturbed(net: UNet, *names: str) -> bool:
    """Whether other weights in the parameters that `names` end change what the network makes."""
    with torch.no_grad():
        before = net(images(), NOISE, LABELS)
        touched = [parameter for name, parameter in net.named_parameters() if name.endswith(names)]
        assert touched
        for parameter in touched:
            parameter.copy_(torch.randn_like(parameter))
        return not torch.equal(net(images(), NOISE, LABELS), before)


BRANCHES = {  # the balance, and weights that matter only through the branch that it weighs
    "label_balance": ("emb_label.weight",),
    "res_balance": ("conv_res0.weight", "conv_res1.weight"),
    "attn_balance": ("attn_qkv.weight", "attn_proj.weight"),
}


@pytest.mark.parametrize("balance", BRANCHES)
def test_a_branch_of_share_0_does_not_matter(balance: str):
    assert not disturbed(unet(**{balance: 0.0}), *BRANCHES[balance])


@pytest.mark.parametrize(
    ("balance", "other"),
    [
        (balance, other)
        for balance, other in product(BRANCHES, [*BRANCHES, "concat_balance"])
        if other != balance and (balance, other) != ("label_balance", "res_balance")  # the class acts on that branch
    ],
)
def test_and_does_with_another_share_0(balance: str, other: str):
    assert disturbed(unet(**{other: 0.0}), *BRANCHES[balance])


@pytest.mark.parametrize("balance", [*BRANCHES, "concat_balance"])
def test_skips_matter_but_for_a_share_of_0(balance: str, monkeypatch: pytest.MonkeyPatch):
    net = unet(**{balance: 0.0})
    with torch.no_grad():
        before = net(images(), NOISE, LABELS)
        monkeypatch.setattr("recipe.edm2.networks.unet.mp_cat", lambda a, b, t: mp_cat(a, b + 1, t=t))
        same = torch.equal(net(images(), NOISE, LABELS), before)
    assert same == (balance == "concat_balance")
