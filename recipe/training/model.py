"""The ComposerModel: a denoiser with its averages; batch in, loss out."""

import copy

import torch
from composer.models import ComposerModel
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from recipe.edm2.images import to_network
from recipe.edm2.loss import denoising_error, uncertainty_loss
from recipe.edm2.networks.flops import macs_per_image
from recipe.edm2.networks.initialize import initialize_
from recipe.edm2.networks.precond import Precond
from recipe.edm2.sharded_tensors import local


class DiffusionModel(ComposerModel):
    """Trains `net`; `emas` holds one frozen copy per tracked average.

    The averages are modules beside the network, so that whatever shards, moves, saves and restores the network does the
    same to them. Nothing ever swaps them into its place.

    A batch is a dict of tensors: `image` uint8 or float [N, C, H, W], or `mean` and `std` of latents; `label` int64 [N]
    (-1 = unconditional), `id` int64 [N]. `ExampleImages` makes `image` of them and, with augmentation, `augment`
    float32 [N, 9]; `ExampleNoise` adds `sigma` float32 [N] and unit-variance `noise` [N, C, H, W].

    Args:
        net: the denoiser.
        sigma_rels: relative lengths of the averages to track.
    """

    def __init__(self, net: Precond, sigma_rels: list[float]):
        super().__init__()
        self.net = net
        self.macs_per_image = macs_per_image(net)  # now: a sharded network cannot be counted
        self.sigma_rels = list(sigma_rels)
        self.emas = nn.ModuleDict()
        for sigma_rel in sigma_rels:
            self.emas[ema_key(sigma_rel)] = copy.deepcopy(net).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "DiffusionModel":
        super().train(mode)
        self.emas.eval()
        return self

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        images = to_network(batch["image"])
        sigma = batch["sigma"]
        x = images + sigma[:, None, None, None] * batch["noise"]
        denoised, logvar = self.net(x, sigma, batch["label"], return_logvar=True, augment=batch.get("augment"))
        return {"images": images, "denoised": denoised, "logvar": logvar}

    def loss(self, outputs: dict[str, Tensor], batch: dict[str, Tensor], *args, **kwargs) -> dict[str, Tensor]:  # pyright: ignore
        """Loss of eq. 21, summed over C, H, W and averaged over the batch; `denoising` is its error per element."""
        num_elements = outputs["images"][0].numel()
        error = denoising_error(outputs["denoised"], outputs["images"], batch["sigma"], self.net.sigma_data)
        total = uncertainty_loss(error, outputs["logvar"], num_elements).mean()
        return {"total": total, "denoising": error.detach().mean() / num_elements}

    def flops_per_batch(self, batch: dict[str, Tensor]) -> float:
        """Floating-point operations of a training step on this rank's batch, for SpeedMonitor's MFU."""
        # Two operations per multiply-add; backward costs two forwards.
        return 2 * 3 * self.macs_per_image * len(batch["id"])

    def initialize_(self, seed: int) -> None:
        """Fill the network with fresh weights and each average with a copy of them."""
        initialize_(self.net, seed)
        self.reset_averages_()

    @torch.no_grad()
    def reset_averages_(self) -> None:
        """Make each average, its buffers too, a copy of the network."""
        state = self.net.state_dict()
        for _, average in self.averages():
            for name, tensor in average.state_dict().items():
                local(tensor).copy_(local(state[name]))

    def parameters_to_train(self) -> list[nn.Parameter]:
        return list(self.net.parameters())

    def averages(self) -> list[tuple[float, Precond]]:
        """Each tracked length with its average of the network."""
        return [(sigma_rel, self.emas[ema_key(sigma_rel)]) for sigma_rel in self.sigma_rels]  # pyright: ignore


def ema_key(sigma_rel: float) -> str:
    """Name of an average within the model's state: 0.05 -> "0_050" (a module's name cannot hold a dot)."""
    return f"{sigma_rel:.3f}".replace(".", "_")


def unwrap(model: nn.Module) -> DiffusionModel:
    """The DiffusionModel inside what Composer made of it."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    assert isinstance(inner, DiffusionModel)
    return inner
