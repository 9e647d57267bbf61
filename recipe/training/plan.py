"""What a run will need, told without allocating it."""

import torch

from recipe.config import Config
from recipe.edm2.flops import macs_per_image
from recipe.edm2.precond import Precond


def print_plan(config: Config) -> None:
    """Build the model on the meta device and print its parameters, GFLOPs per image, memory per rank and steps."""
    with torch.device("meta"):
        net = Precond(**config.model.network_arguments())
    parameters = sum(parameter.numel() for parameter in net.parameters())
    averages = len(config.ema.sigma_rels)
    samples = None
    if config.duration.unit == "ep":  # its length in steps depends on the data
        from recipe.training.data import check_data

        samples = check_data(config)[0]
    batch = config.global_batch_size
    epoch = None if samples is None else samples // batch * batch
    steps = config.duration.images(batch, epoch) // batch
    gigabytes = 4 * parameters / 1e9
    print(f"parameters        {parameters / 1e6:.2f} M")
    print(f"compute           {macs_per_image(net) / 1e9:.2f} GFLOPs per image (multiply-adds of one forward pass)")
    print(f"memory per rank   {gigabytes * (4 + averages):.2f} GB, and activations: weights, gradients, Adam (2) and "
          f"{averages} averages of {gigabytes:.2f} GB each")  # fmt: skip
    print(f"steps             {steps} of {batch} images")
