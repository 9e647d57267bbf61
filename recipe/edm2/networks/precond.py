"""Preconditioning, and the uncertainty that the loss learns beside the denoiser (Appendix B.1, Section 2.1)."""

import torch
from torch import Tensor, nn

from recipe.edm2.networks.layers import MPConv, MPFourier
from recipe.edm2.networks.unet import Block, UNet


class Precond(nn.Module):
    """The denoiser D(x; sigma, label) of eq. 4-8 around the U-Net, with the log variance u(sigma) of eq. 21.

    Args:
        img_resolution, img_channels, label_dim: see `UNet`.
        dtype: precision of the U-Net's activations; weights, embedding, preconditioning and output are float32.
        sigma_data: standard deviation of the images that training shows.
        logvar_channels: Fourier features of the uncertainty's one-layer MLP.
        unet_kwargs: further arguments of `UNet`.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        dtype: torch.dtype = torch.float32,
        sigma_data: float = 0.5,
        logvar_channels: int = 128,
        **unet_kwargs,
    ):
        super().__init__()
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.label_dim = label_dim
        self.dtype = dtype
        self.sigma_data = sigma_data
        self.unet = UNet(img_resolution, img_channels, label_dim, **unet_kwargs)
        self.logvar_fourier = MPFourier(logvar_channels)
        self.logvar_linear = MPConv(logvar_channels, 1)

    def blocks(self) -> list[Block]:
        """The network's blocks in order of execution: what sharding gathers and checkpointing recomputes at a time."""
        return self.unet.blocks()

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        labels: Tensor | None = None,
        return_logvar: bool = False,
        augment: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Denoise `x`.

        Args:
            x: noisy images [N, C, H, W], any float dtype.
            sigma: noise level, > 0, [N] or a scalar tensor.
            labels: int64 class ids [N]; -1, or None for all, means unconditional.
            return_logvar: also return u(sigma).
            augment: conditions of the augmentation [N, augment_dim]; None = untouched images.

        Returns:
            The denoised images [N, C, H, W] in float32; with `return_logvar` also u [N] in float32.
        """
        x = x.float()
        sigma = sigma.float().expand(x.shape[0])
        s = sigma[:, None, None, None]
        total = self.sigma_data**2 + s**2
        c_skip = self.sigma_data**2 / total  # eq. 5
        c_out = s * self.sigma_data / total.sqrt()  # eq. 6
        c_in = 1 / total.sqrt()  # eq. 7
        c_noise = sigma.log() / 4  # eq. 8
        f_x = self.unet((c_in * x).to(self.dtype), c_noise, labels, augment)
        denoised = c_skip * x + c_out * f_x.float()
        if not return_logvar:
            return denoised
        return denoised, self.logvar_linear(self.logvar_fourier(c_noise)).squeeze(1)


def project_weights_(module: nn.Module) -> None:
    """Forced weight normalisation (Algorithm 1): project each MPConv weight in `module` to unit RMS per output unit.

    Run before each training step, outside forward. Gains and buffers are left alone.
    """
    for layer in module.modules():
        if isinstance(layer, MPConv):
            layer.project_()
