"""What one forward pass costs."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from recipe.edm2.networks.precond import Precond


def macs_per_image(net: Precond) -> int:
    """Multiply-adds of one forward pass per image, counted by torch without computing anything.

    The paper counts one operation per multiply-add and calls the sum Gflops, and includes elementwise operations, about
    1% more than this.
    """
    # The state is replaced for this call, not copied: a copy of a large network would not fit beside it.
    state = {name: torch.empty_like(tensor, device="meta") for name, tensor in net.state_dict().items()}
    with torch.device("meta"):
        x = torch.empty(1, net.img_channels, net.img_resolution, net.img_resolution)
        sigma, labels = torch.empty(1), torch.zeros(1, dtype=torch.int64)
        conditions = torch.empty(1, net.unet.augment_dim) if net.unet.augment_dim > 0 else None
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        torch.func.functional_call(net, state, (x, sigma, labels), {"augment": conditions})
    return counter.get_total_flops() // 2
