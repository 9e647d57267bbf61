"""Networks for sampling: from a snapshot, with what makes pictures of their images."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from recipe.command_line import UserError
from recipe.data.autoencoder import Vae, find_vae
from recipe.edm2.images import to_pixels
from recipe.edm2.latents import STABLE_DIFFUSION, Whitening, unwhiten
from recipe.edm2.networks.precond import Precond
from recipe.weights.snapshots import load_network


class SampleError(UserError):
    """Arguments that do not fit the network; the message names them."""


def load(path: str, device: torch.device, dtype: torch.dtype) -> tuple[Precond, dict[str, Any]]:
    """The network of a snapshot on the device, and the statistics of the data that it was trained on."""
    net, info = load_network(path, dtype)
    return net.to(device), info.dataset


def whitening_of(path: str, net: Precond, dataset: dict[str, Any]) -> Whitening | None:
    """The scaling of the latents that the network makes; None if it makes pixels.

    A snapshot that does not say so, such as a converted one, makes pixels if it has 1 or 3 channels, and latents as
    Stable Diffusion's if it has 4.

    Raises:
        SampleError: images that are neither.
    """
    kind = dataset.get("kind", "pixels" if net.img_channels in (1, 3) else "latents")
    if kind == "pixels" and net.img_channels in (1, 3):
        return None
    if kind == "latents" and "whitening" in dataset:
        return Whitening(*(tuple(dataset["whitening"][name]) for name in ("mean", "std")))
    if kind == "latents" and net.img_channels == len(STABLE_DIFFUSION.mean):
        return STABLE_DIFFUSION
    raise SampleError(f"{path}: makes {kind} of {net.img_channels} channels, whose scaling it does not know")


def to_pictures(
    path: str, net: Precond, dataset: dict[str, Any], vae: str | None, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """What turns the network's images into uint8 pictures: of latents, the decoder of `vae`.

    Raises:
        SampleError, VaeError: --vae is missing, not needed, or not the one for these latents.
    """
    whitening = whitening_of(path, net, dataset)
    if whitening is None:
        if vae is not None:
            raise SampleError(f"--vae {vae}: {path} makes pictures, not latents; leave it out")
        return to_pixels
    if vae is None:
        raise SampleError(
            f"{path}: makes latents; name the autoencoder that its data were encoded with, "
            f"{dataset.get('vae', 'such as the folder of sd-vae-ft-mse')}, by --vae"
        )
    from recipe.data.autoencoder import Vae  # its library takes seconds to import

    files = find_vae(vae)
    files.check_latents(net.img_channels, path)
    if dataset.get("vae_sha256") not in (None, files.sha256()):
        # No error: some autoencoders differ in their decoder alone.
        print(f"sample.py: --vae {vae} has other weights than {dataset.get('vae')} of the data", file=sys.stderr)
    decoder = Vae(files, device)
    return lambda latents: decoder.decode(unwhiten(latents, whitening))


def check_guide(
    path: str, guide: Precond, about: dict[str, Any], guided: str, net: Precond, dataset: dict[str, Any]
) -> None:
    """Raises SampleError if the network of the snapshot at `path` cannot guide that at `guided`."""
    if (guide.img_resolution, guide.img_channels) != (net.img_resolution, net.img_channels):
        raise SampleError(f"--guide {path}: makes images of another shape than {guided}")
    if guide.label_dim not in (0, net.label_dim):
        raise SampleError(f"--guide {path}: knows other classes than {guided}")
    if whitening_of(path, guide, about) != whitening_of(guided, net, dataset):
        raise SampleError(f"--guide {path}: makes latents scaled in another way than {guided}")


def usable_device(name: str) -> torch.device:
    """The device; raises SampleError if there is none of that name here."""
    try:
        return torch.empty(0, device=name).device
    except (AssertionError, RuntimeError) as error:
        raise SampleError(f"--device {name}: {str(error).splitlines()[0]}") from None


class LatentPictures:
    """Decodes whitened latents [N, C, h, w] to uint8 pictures [N, 3, H, W].

    Args:
        vae: the autoencoder, on the CPU; it is on `device` only while it works, for the memory is the training's.
    """

    def __init__(self, vae: Vae, whitening: Whitening, device: torch.device):
        self.vae = vae
        self.whitening = whitening
        self.device = device

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        self.vae.to(self.device)
        pictures = self.vae.decode(unwhiten(latents, self.whitening))
        self.vae.to("cpu")
        return pictures
