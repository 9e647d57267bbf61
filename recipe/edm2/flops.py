"""What one forward pass costs."""

import copy

import torch
from torch.utils.flop_counter import FlopCounterMode

from recipe.edm2.precond import Precond


def macs_per_image(net: Precond) -> int:
    """Multiply-adds of one forward pass per image, counted by torch without computing anything.

    The paper counts one operation per multiply-add and calls the sum Gflops, and includes elementwise operations, about
    1% more than this.
    """
    with torch.device("meta"):
        shadow = copy.deepcopy(net).to("meta").eval()
        x = torch.empty(1, net.img_channels, net.img_resolution, net.img_resolution)
        sigma, labels = torch.empty(1), torch.zeros(1, dtype=torch.int64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shadow(x, sigma, labels)
    return counter.get_total_flops() // 2
