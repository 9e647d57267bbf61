"""What a run will need, told without allocating it."""

import torch

from recipe.config import Config
from recipe.edm2.flops import macs_per_image
from recipe.edm2.precond import Precond
from recipe.training.data import check_data


def print_plan(config: Config) -> None:
    """Build the model on the meta device and print its parameters, GFLOPs per image, memory per rank and steps."""
    with torch.device("meta"):
        net = Precond(**config.model.model_dump(exclude={"dtype"}))
    parameters = sum(parameter.numel() for parameter in net.parameters())
    averages = len(config.ema.sigma_rels)
    samples = check_data(config)[0] if needs_epochs(config) else None
    batch = config.global_batch_size
    epoch = None if samples is None else samples // batch * batch
    steps = config.duration.images(batch, epoch) // batch
    gigabytes = 4 * parameters / 1e9
    print(f"parameters        {parameters / 1e6:.2f} M")
    print(f"compute           {macs_per_image(net) / 1e9:.2f} GFLOPs per image (multiply-adds of one forward pass)")
    print(f"memory per rank   {gigabytes * (4 + averages):.2f} GB = weights, gradients, Adam (2) and {averages} averages "
          f"of {gigabytes:.2f} GB each, and activations")  # fmt: skip
    print(f"steps             {steps} of {batch} images")


def needs_epochs(config: Config) -> bool:
    """Whether the length of the run is given in epochs, so that the data must be there to count its steps."""
    return config.duration.unit == "ep"
