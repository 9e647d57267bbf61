"""The ComposerModel: a denoiser with its averages; batch in, loss out."""

import copy

import torch
from composer.models import ComposerModel
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from recipe.edm2.loss import example_losses
from recipe.edm2.networks.flops import macs_per_image
from recipe.edm2.networks.initialize import initialize_
from recipe.edm2.networks.precond import Precond
from recipe.edm2.sharded_tensors import local
from recipe.training.inputs import Batch


class DiffusionModel(ComposerModel):
    """Trains `net`; `emas` holds one frozen copy per tracked average.

    The averages are modules beside the network, so that whatever shards, moves, saves and restores the network does the
    same to them. Nothing ever swaps them into its place. What the loader brings is made a `Batch` by `ExampleInputs`.

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

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The `loss` and the `denoising` error of each example, both [N]."""
        loss, error = example_losses(
            self.net, batch["image"], batch["sigma"], batch["noise"], batch["label"], batch.get("augment")
        )
        return {"loss": loss, "denoising": error}

    def loss(self, outputs: dict[str, Tensor], batch: Batch, *args, **kwargs) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Loss of eq. 21, summed over C, H, W and averaged over the batch; `denoising` is its error per element."""
        num_elements = batch["image"][0].numel()
        return {"total": outputs["loss"].mean(), "denoising": outputs["denoising"].detach().mean() / num_elements}

    def flops_per_batch(self, batch: Batch) -> float:
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
