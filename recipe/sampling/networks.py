"""Networks for sampling: from a snapshot, with what makes pictures of their images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recipe.command_line import UserError, launcher_number, remark
from recipe.data.autoencoder import Vae, VaeFiles, find_vae
from recipe.data.facts import LATENTS, PIXELS, DataFacts
from recipe.edm2.images import to_pixels
from recipe.edm2.latents import STABLE_DIFFUSION, Whitening, unwhiten
from recipe.edm2.networks.precond import Precond
from recipe.weights.snapshots import load_network, snapshot_identity


class SampleError(UserError):
    """Arguments that do not fit the network; the message names them."""


@dataclass(frozen=True)
class Sampled:
    """The network of a snapshot.

    Attributes:
        path: of the snapshot, for messages.
        net: the network, on the device that it draws on.
        facts: of the data that it was trained on.
        label_dropout: share of examples that it was shown without their class; None = the snapshot does not say.
        identity: of the snapshot's contents, wherever it lies.
    """

    path: str
    net: Precond
    facts: DataFacts
    label_dropout: float | None = None
    identity: str = ""

    def whitening(self) -> Whitening | None:
        """The whitening of the latents that the network makes; None if it makes pixels.

        A snapshot that does not say so, such as a converted one, makes pixels if it has 1 or 3 channels, and latents as
        Stable Diffusion's if it has 4.

        Raises:
            SampleError: images that are neither.
        """
        channels = self.net.img_channels
        kind = self.facts.kind or (PIXELS if channels in (1, 3) else LATENTS)
        published = channels == len(STABLE_DIFFUSION.mean)
        known = {PIXELS: channels in (1, 3), LATENTS: self.facts.whitening is not None or published}
        if not known.get(kind, False):
            raise SampleError(f"{self.path}: makes {kind} of {channels} channels, whose scaling it does not know")
        return self.facts.of_kind(kind, self.path).latent_whitening


def load(path: str, device: torch.device, dtype: torch.dtype) -> Sampled:
    """The network of a snapshot on the device, its activations in `dtype`. Raises SnapshotError."""
    net, info = load_network(path, dtype)
    dropout = info.extra.get("label_dropout")
    return Sampled(path, net.to(device), info.dataset, dropout, snapshot_identity(path))


def check_guidance(sampled: Sampled, guidance: float, labels: Sequence[int]) -> None:
    """See whether a network can guide itself by what it makes without labels.

    Raises:
        SampleError: it is asked for no labels, or never learnt to do without.
    """
    wish = f"--guidance {guidance:g}"
    fix = "name a weaker network by --guide, or leave --guidance out"
    if set(labels) == {-1}:
        raise SampleError(f"{wish}: does nothing without labels, which guidance strengthens; {fix}")
    dropout = sampled.label_dropout
    if dropout == 0:
        raise SampleError(
            f"{wish}: {sampled.path} was trained with loss.label_dropout 0, so it did not learn to do without labels; "
            f"{fix}"
        )
    if dropout is None:
        remark(f"{wish} supposes label dropout in training, of which {sampled.path} says nothing")


class LatentPictures:
    """Decodes whitened latents [N, C, h, w] to uint8 pictures [N, 3, H, W] on the CPU.

    Args:
        files: the autoencoder.
        whitening: of the latents.
        device: where it decodes.
        idle: where it lies between calls; None = on `device`.

    Raises:
        VaeError: it cannot be loaded.
    """

    def __init__(self, files: VaeFiles, whitening: Whitening, device: torch.device, idle: torch.device | None = None):
        self.idle = device if idle is None else idle
        self.vae = Vae(files, self.idle)
        self.whitening = whitening
        self.device = device

    def sha256(self) -> str:
        """The digest of the autoencoder's weights."""
        return self.vae.files.sha256()

    def __call__(self, latents: Tensor) -> Tensor:
        self.vae.to(self.device)
        pictures = self.vae.decode(unwhiten(latents, self.whitening))
        self.vae.to(self.idle)
        return pictures


def to_pictures(sampled: Sampled, vae: str | None, device: torch.device) -> Callable[[Tensor], Tensor]:
    """What turns the network's images into uint8 pictures: of latents, the decoder of `vae`.

    Raises:
        SampleError, VaeError: --vae is missing, not needed, or not the one for these latents.
    """
    path, facts, whitening = sampled.path, sampled.facts, sampled.whitening()
    if whitening is None:
        if vae is not None:
            raise SampleError(f"--vae {vae}: {path} makes pictures, not latents; leave it out")
        return to_pixels
    if vae is None:
        raise SampleError(
            f"{path}: makes latents; name the autoencoder that its data were encoded with, "
            f"{facts.vae or 'such as the folder of sd-vae-ft-mse'}, by --vae"
        )
    files = find_vae(vae)
    files.check_latents(sampled.net.img_channels, path)
    if facts.vae_sha256 not in (None, files.sha256()):
        # No error: some autoencoders differ in their decoder alone.
        remark(f"--vae {vae} has other weights than {facts.vae} of the data")
    return LatentPictures(files, whitening, device)


def check_guide(guide: Sampled, guided: Sampled) -> None:
    """Raises SampleError if the network `guide` cannot guide `guided`."""
    net, guided_net = guide.net, guided.net
    if (net.img_resolution, net.img_channels) != (guided_net.img_resolution, guided_net.img_channels):
        raise SampleError(f"--guide {guide.path}: makes images of another shape than {guided.path}")
    if net.label_dim not in (0, guided_net.label_dim):
        raise SampleError(f"--guide {guide.path}: knows other classes than {guided.path}")
    if guide.whitening() != guided.whitening():
        raise SampleError(f"--guide {guide.path}: makes latents scaled in another way than {guided.path}")


def usable_device(name: str) -> torch.device:
    """The device, of several ranks on a machine one for each; raises SampleError if there is none of that name here."""
    if name == "cuda" and torch.cuda.device_count() > 1:
        name = f"cuda:{launcher_number('LOCAL_RANK', 0) % torch.cuda.device_count()}"
    try:
        return torch.empty(0, device=name).device
    except (AssertionError, RuntimeError) as error:
        raise SampleError(f"--device {name}: {str(error).splitlines()[0]}") from None
