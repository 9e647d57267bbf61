"""Stable Diffusion's autoencoder, through diffusers: pictures to the moments of their latents, and latents to pictures.

Pictures enter in [0, 1] and come out in [0, 1], although the autoencoder was trained on [-1, 1]. The official code does
so, its authors say that it is meant (NVlabs/edm2, issue 9), and the whitening constants are of latents made this way.
"""

import importlib.util
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipe.command_line import UserError
from recipe.storage.files import file_sha256

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
SUBFOLDER = "vae"  # of a whole Stable Diffusion model
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
DTYPES = {"float32": torch.float32, "float16": torch.float16}
MISSING = "needs the package diffusers (pip install 'edm2-recipe[vae]'), which is missing"


class VaeError(UserError):
    """An autoencoder that cannot be used, or not for these data; the message begins with the option that names it."""


@dataclass(frozen=True)
class VaeFiles:
    """An autoencoder on disk; all of this is known without loading it, which takes seconds.

    Attributes:
        given: the option and the name as the user gave them, for messages.
        name: of a hub's model, or of the local folder without its path.
        folder: that holds the configuration and the weights.
        channels: of the latents.
        factor: width of the square of pixels that becomes one latent pixel.
    """

    given: str
    name: str
    folder: Path
    channels: int
    factor: int

    def sha256(self) -> str:
        """Of the file of weights."""
        return file_sha256(self.folder / WEIGHTS)

    def check_pictures(self, resolution: int) -> None:
        """Raises VaeError if it cannot encode pictures of this height and width."""
        if resolution % self.factor:
            below = resolution // self.factor * self.factor
            near = f"{below} or {below + self.factor}" if below else str(self.factor)
            raise VaeError(
                f"{self.given}: pictures of {resolution}x{resolution} pixels are no multiple of its factor "
                f"{self.factor}; give --resolution {near}"
            )

    def check_latents(self, channels: int, whose: str) -> None:
        """Raises VaeError if it cannot decode latents of so many channels."""
        if channels != self.channels:
            raise VaeError(
                f"{self.given}: has latents of {self.channels} channels, but {whose} has {channels}; name the "
                "autoencoder that the data were encoded with"
            )


def find_vae(name: str, option: str = "--vae") -> VaeFiles:
    """The autoencoder in a local folder, without touching the network, or of a name on the Hugging Face hub.

    A folder or name of a whole Stable Diffusion model stands for the autoencoder in it. The hub's files come from its
    local cache if they are there; HF_HUB_OFFLINE=1 forbids more.

    Raises:
        VaeError: diffusers is missing, there is no such folder or name, or no AutoencoderKL for RGB pictures with
            weights in safetensors.
    """
    given = f"{option} {name}"
    if importlib.util.find_spec("diffusers") is None:
        raise VaeError(f"{given}: {MISSING}")
    folder = Path(name) if Path(name).is_dir() else _from_hub(name, given)
    if not (folder / CONFIG).is_file() and (folder / SUBFOLDER / CONFIG).is_file():
        folder = folder / SUBFOLDER
    config = _configuration(folder, given)
    if not (folder / WEIGHTS).is_file():
        raise VaeError(f"{given}: holds no {WEIGHTS}; other files of weights are not read, pickles never")
    base = os.path.basename(os.path.abspath(name)) if Path(name).is_dir() else name
    return VaeFiles(given, base, folder, config["latent_channels"], 2 ** (len(config["block_out_channels"]) - 1))


def _configuration(folder: Path, given: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_bytes())
        found = config.get("_class_name")
        if found != "AutoencoderKL":
            raise VaeError(f"{given}: holds a model of the class {found}, but must be an AutoencoderKL; name another")
        channels = {config["in_channels"], config["out_channels"]}
        _ = config["latent_channels"], len(config["block_out_channels"])
    except FileNotFoundError:
        raise VaeError(
            f"{given}: holds no {CONFIG}; name the folder of an AutoencoderKL as diffusers stores it"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, VaeError):
            raise
        raise VaeError(f"{given}: its {CONFIG} is not that of an AutoencoderKL ({error!r}); get it again") from None
    if channels != {3}:
        raise VaeError(f"{given}: encodes pictures of {max(channels - {3})} channels, not RGB; name another")
    return config


def _from_hub(name: str, given: str) -> Path:
    if not HUB_NAME.fullmatch(name):
        raise VaeError(f"{given}: there is no such folder; name one, or a model of the Hugging Face hub as OWNER/NAME")
    from huggingface_hub import snapshot_download

    wanted = [f"{folder}{file}" for folder in ("", f"{SUBFOLDER}/") for file in (CONFIG, WEIGHTS)]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # of the hub, of HTTP, of the network
        raise VaeError(
            f"{given}: there is no such folder, and the Hugging Face hub does not give it "
            f"({type(error).__name__}: {_one_line(error)}); check the name, or fetch it once and name its folder"
        ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


class Vae:
    """An autoencoder that is loaded.

    Args:
        files: which one.
        dtype: of its weights and activations, "float32" or, on CUDA, "float16".
        batch_size: pictures that are encoded or decoded at once; more are split.

    Raises:
        VaeError: the weights are damaged, or not those of the configuration.
    """

    def __init__(self, files: VaeFiles, device: torch.device, dtype: str = "float32", batch_size: int = 8):
        self.files = files
        self.batch_size = batch_size
        self.dtype = DTYPES[dtype]
        self.model = _load(files, self.dtype).to(device)

    def to(self, device: torch.device | str) -> "Vae":
        self.model.to(device)
        return self

    @torch.no_grad()
    def encode(self, images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each latent pixel, float32 [N, channels, H/factor, W/factor], on the CPU.

        Args:
            images: uint8 [N, 3, H, W].

        Raises:
            VaeError: a size that it cannot encode, or numbers that leave the range of float16.
        """
        assert images.dtype == np.uint8 and images.shape[1] == 3, (images.dtype, images.shape)
        self.files.check_pictures(images.shape[2])
        self.files.check_pictures(images.shape[3])
        parts = []
        with _repeatable():
            for batch in torch.from_numpy(images).split(self.batch_size):
                pictures = batch.to(self.model.device).float().div(255).to(self.dtype)  # [0, 1]: see above
                parts.append(self.model.encode(pictures).latent_dist.parameters.float().cpu())
        mean, logvar = torch.cat(parts).chunk(2, dim=1)
        # Bounds as in diffusers; in float32, because e^-15 is beneath float16.
        std = (logvar.clamp(-30, 20) / 2).exp()
        if not (mean.isfinite().all() and std.isfinite().all()):
            raise VaeError(f"{self.files.given}: gives latents that are not finite; use --vae-dtype float32")
        return mean, std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """uint8 pictures [N, 3, H, W] on the CPU from latents [N, channels, H/factor, W/factor], not whitened."""
        parts = []
        with _repeatable():
            for batch in latents.split(self.batch_size):
                decoded = self.model.decode(batch.to(self.model.device, self.dtype)).sample.float()
                parts.append((decoded * 255).round().clamp(0, 255).to(torch.uint8).cpu())
        return torch.cat(parts)


def import_diffusers(files: VaeFiles) -> Any:
    """The class AutoencoderKL. Raises VaeError."""
    try:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        return AutoencoderKL
    except ImportError as error:
        raise VaeError(f"{files.given}: {MISSING} or damaged ({_one_line(error)})") from None


def _load(files: VaeFiles, dtype: torch.dtype) -> Any:
    kind = import_diffusers(files)
    try:
        # diffusers draws random weights first, which must not change what a training run draws after this.
        with _quiet(), torch.random.fork_rng(devices=[]):
            model, loaded = kind.from_pretrained(
                files.folder,
                torch_dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
    except Exception as error:  # of safetensors, diffusers or torch, each of many kinds
        raise VaeError(f"{files.given}: cannot be loaded ({_one_line(error)}); get it again") from None
    wrong = [f"{len(names)} {kind.replace('_', ' ')}" for kind, names in loaded.items() if names]
    if wrong:
        raise VaeError(f"{files.given}: its weights do not fit its {CONFIG} ({', '.join(wrong)}); get it again")
    return model.requires_grad_(False)


@contextmanager
def _quiet() -> Iterator[None]:
    """diffusers logs what is raised here anyway."""
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _repeatable() -> Iterator[None]:
    """The same bits each time: one thread on the CPU, fixed kernels on CUDA, no TF32."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(threads)
