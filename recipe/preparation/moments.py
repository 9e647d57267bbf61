"""Pictures stored as the moments of their latents: mean and standard deviation of each latent pixel (Section 2)."""

import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recipe.data.autoencoder import Vae, VaeError, VaeFiles, import_diffusers
from recipe.edm2.latents import SIGMA_DATA, STABLE_DIFFUSION, Whitening
from recipe.preparation.sources.items import PreparationError

PER_GPU = 4  # processes that share a GPU, so that it encodes for one while others decode files


class MomentEncoder:
    """Encodes pictures in the process that calls it, on this rank's GPU if there is one.

    The autoencoder is loaded at the first picture: a process that forks workers must not use CUDA itself.

    Args:
        files: the autoencoder.
        resolution: height and width of the pictures.
        batch_size: pictures that are encoded together.
        stored: precision of the stored moments, "float32" or "float16".
        whitening: "constants" (of Stable Diffusion's autoencoder) or "measured"; None = constants if they fit.
        computed: precision of the autoencoder.

    Raises:
        VaeError: pictures that it cannot encode, or constants for latents of another number of channels.
    """

    kind = "latents"

    def __init__(
        self, files: VaeFiles, resolution: int, batch_size: int, stored: str, whitening: str | None, computed: str
    ):
        files.check_pictures(resolution)
        fitting = len(STABLE_DIFFUSION.mean) == files.channels
        if whitening == "constants" and not fitting:
            raise VaeError(
                f"--whitening constants: are of {len(STABLE_DIFFUSION.mean)} channels, but {files.given} has latents "
                f"of {files.channels}; use --whitening measured"
            )
        if computed == "float16" and not cuda_is_there():
            raise VaeError("--vae-dtype float16: needs a GPU, and PyTorch finds none; leave it out")
        self.files = files
        self.sha256 = files.sha256()
        self.resolution = resolution
        self.batch_size = batch_size
        self.stored = stored
        self.whitening = whitening or ("constants" if fitting else "measured")
        self.computed = computed
        self.shape = (files.channels, resolution // files.factor, resolution // files.factor)
        column = f"ndarray:{stored}:{','.join(map(str, self.shape))}"
        self.columns = {"mean": column, "std": column}
        self.sample_bytes = 2 * int(np.prod(self.shape)) * np.dtype(stored).itemsize
        self._vae: Vae | None = None
        cuda_is_there()  # before diffusers asks in another way
        import_diffusers(files)  # here, as it takes seconds: processes that are forked from this one have it

    def settings(self) -> dict[str, Any]:
        """All that decides what is stored. The batch and the device change it by rounding only."""
        return {
            "vae_sha256": self.sha256,
            "latent_dtype": self.stored,
            "vae_dtype": self.computed,
            "whitening": self.whitening,
        }

    def about(self) -> dict[str, Any]:
        return {
            "img_resolution": self.shape[1],
            "img_channels": self.shape[0],
            "pixel_resolution": self.resolution,
            "vae": self.files.name,
            "vae_sha256": self.sha256,
        }

    def encode(self, images: NDArray[np.uint8]) -> list[dict[str, Any]]:
        if self._vae is None:
            self._vae = Vae(self.files, encoding_device(), self.computed, self.batch_size)
        try:
            mean, std = self._vae.encode(images)
        except torch.OutOfMemoryError:
            raise PreparationError(
                f"--vae-batch {self.batch_size}: the GPU has too little memory; give a smaller one or fewer --workers, "
                "finished work is kept"
            ) from None
        moments = [moment.numpy().astype(self.stored) for moment in (mean, std)]
        return [{"mean": mean, "std": std} for mean, std in zip(*moments, strict=True)]

    def most_processes(self) -> int:
        return PER_GPU if cuda_is_there() else sys.maxsize

    def sums(self) -> "MomentSums":
        return MomentSums(self.shape[0], self.whitening)


def cuda_is_there() -> bool:
    """Whether there is a GPU, asked in a way after which forked processes can still use it."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    return torch.cuda.is_available()


def encoding_device() -> torch.device:
    """This rank's GPU, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


class MomentSums:
    """Sums over latent pixels per channel, in float64; merged in the order of the chunks they are always the same.

    Args:
        channels: of the latents.
        whitening: which one the facts are to name.
    """

    def __init__(self, channels: int, whitening: str):
        self.whitening = whitening
        self.count = 0  # latent pixels per channel
        self.sums = np.zeros((3, channels))  # of mean, mean^2 and std^2

    def add(self, images: NDArray[np.uint8], samples: Sequence[dict[str, Any]]) -> None:
        """Add the moments in `samples`; the pictures themselves do not count."""
        mean, std = (np.stack([sample[name] for sample in samples]).astype(np.float64) for name in ("mean", "std"))
        self.count += mean[:, 0].size
        self.sums += [part.sum(axis=(0, 2, 3)) for part in (mean, np.square(mean), np.square(std))]

    def note(self) -> dict[str, Any]:
        """The sums as JSON can hold them."""
        return {"count": self.count, "sums": self.sums.tolist()}

    def merge(self, note: dict[str, Any]) -> None:
        """Add the sums of another chunk, as its `note` says them."""
        self.count += note["count"]
        self.sums += note["sums"]

    def facts(self) -> dict[str, Any]:
        """Entries of stats.json: mean E[mean] and std sqrt(E[std^2] + Var[mean]) of draws; whitening; sigma_data.

        sigma_data = the std of all channels together, as the network sees them: after whitening.

        Raises:
            PreparationError: a channel that cannot be whitened by what was measured, because it never changes.
        """
        mean, square, variance = self.sums / self.count
        std = np.sqrt(variance + np.maximum(square - mean**2, 0))
        whitening = STABLE_DIFFUSION
        if self.whitening == "measured":
            if not (std > 0).all():
                raise PreparationError("--whitening measured: a channel of the latents never changes; use constants")
            whitening = Whitening(mean.tolist(), std.tolist())
        scale = SIGMA_DATA / np.array(whitening.std)
        white_mean, white_std = (mean - whitening.mean) * scale, std * scale
        return {
            "mean": mean.tolist(),
            "std": std.tolist(),
            "sigma_data": float(np.sqrt(np.mean(white_std**2) + np.var(white_mean))),
            "whitening": {"mean": list(whitening.mean), "std": list(whitening.std)},
        }
