"""What the commands that draw have in common: the network and its guide, the sampler's settings, the device."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recipe.command_options import OptionError, Options, address, choice, real_number, whole_number, word
from recipe.edm2.samplers.generate import SamplerSettings
from recipe.sampling.distributed import Drawer, Wanted
from recipe.sampling.labels import labels_for
from recipe.sampling.networks import (
    LatentPictures,
    Sampled,
    check_guidance,
    check_guide,
    load,
    to_pictures,
    usable_device,
)
from recipe.sampling.sampler_options import INTERVAL, add_sampler_options, levels, sampler_settings
from recipe.sampling.settings import DrawnBy, drawn_by


@dataclass(frozen=True)
class Drawing:
    """What draws, and what it is to draw.

    Attributes:
        drawer: draws.
        wanted: the images, in the order of their seeds.
        settings: all that an image depends on beside its seed and label.
        resolution: height and width of the pictures.
    """

    drawer: Drawer
    wanted: Sequence[Wanted]
    settings: DrawnBy
    resolution: int


def add_drawing_options(parser: Options, needs_snapshot: bool = True) -> None:
    """SNAPSHOT and the options that decide what an image of a seed is, and where it is computed.

    Args:
        needs_snapshot: False = SNAPSHOT may be left out, since something else can name it.
    """
    add = parser.add_argument
    snapshot = ".safetensors file of a run's snapshots or posthoc folder, local or s3://"
    nargs = None if needs_snapshot else "?"
    add("snapshot", type=address("SNAPSHOT"), nargs=nargs, metavar="SNAPSHOT", help=snapshot)
    add("--guidance", type=real_number("--guidance", least=0), default=1.0, help="1 = none (default)")
    add("--guide", type=address("--guide"), metavar="SNAPSHOT", help="network to guide away from")
    add("--guidance-interval", type=levels("--guidance-interval"), metavar="LO:HI", help=INTERVAL)
    add_sampling_options(parser)


def add_sampling_options(parser: Options) -> None:
    """The options beside network and guidance, which a sweep has lists of."""
    add = parser.add_argument
    labels = "classes to go through, by id or name; balanced = all (default), random, or none = unconditional"
    add("--labels", type=word("--labels"), metavar="LIST", help=labels)
    steps = "noise levels of the sampler (default 32)"
    add("--steps", type=whole_number("--steps"), default=32, metavar="N", help=steps)
    add("--sigma-min", type=real_number("--sigma-min", above=0), default=0.002, help="last noise level (default 0.002)")
    add("--sigma-max", type=real_number("--sigma-max", above=0), default=80.0, help="first noise level (default 80)")
    add("--rho", type=real_number("--rho", above=0), default=7.0, help="spacing of the noise levels (default 7)")
    add_sampler_options(parser)
    vae = "of latents: the AutoencoderKL's folder, or OWNER/NAME on the Hugging Face hub"
    add("--vae", type=address("--vae"), metavar="NAME", help=vae)
    batch_size = "images in memory at once, which changes no image (default 64)"
    add("--batch-size", type=whole_number("--batch-size"), default=64, metavar="N", help=batch_size)
    dtype = "float32, float16 or bfloat16 (default: float16 on CUDA, else float32)"
    add("--dtype", type=choice("--dtype", "float32", "float16", "bfloat16"), help=dtype)
    add_device(parser)


def add_device(parser: Options) -> None:
    """--device."""
    parser.add_argument("--device", type=word("--device"), default="cuda" if torch.cuda.is_available() else "cpu")


def check_drawing(arguments: argparse.Namespace) -> SamplerSettings:
    """What can be said against these options before a file is read; returns the sampler's. Raises OptionError."""
    check_schedule(arguments)
    if arguments.guide is not None and arguments.guidance == 1:
        raise OptionError(f"--guide {arguments.guide}: does nothing at --guidance 1; add for example --guidance 2")
    if arguments.guide == arguments.snapshot:
        raise OptionError(f"--guide {arguments.guide}: is the snapshot itself, and would do nothing; name a weaker one")
    return sampler_settings(arguments)


def check_schedule(arguments: argparse.Namespace) -> None:
    """Raises OptionError for noise levels that do not fall."""
    if arguments.sigma_min >= arguments.sigma_max:
        noise = f"sigma_min {arguments.sigma_min} and sigma_max {arguments.sigma_max}"
        raise OptionError(f"--sigma-min: {noise} do not satisfy 0 < sigma_min < sigma_max")


def load_drawing(arguments: argparse.Namespace, settings: SamplerSettings, seeds: Sequence[int]) -> Drawing:
    """The networks in the precision that was asked for, and an image for each seed. Raises ValueError."""
    device = usable_device(arguments.device)
    sampled, guide = _load_all(arguments, device)
    wanted = wanted_images(arguments, seeds, sampled, 1.0 if guide is not None else arguments.guidance)
    pictures = to_pictures(sampled, arguments.vae, device)
    factor = pictures.vae.files.factor if isinstance(pictures, LatentPictures) else 1
    return Drawing(
        Drawer(sampled.net, settings, None if guide is None else guide.net, pictures),
        wanted,
        drawn_by(sampled, guide, settings, vae_digest(pictures)),
        sampled.net.img_resolution * factor,
    )


def wanted_images(
    arguments: argparse.Namespace, seeds: Sequence[int], sampled: Sampled, own_guidance: float
) -> list[Wanted]:
    """An image for each seed, of the classes that --labels names.

    Args:
        own_guidance: strength with which the network guides itself; 1 = it does not.

    Raises:
        SampleError: classes that the network does not know, or guidance that it did not learn.
    """
    labels = labels_for(seeds, arguments.labels, sampled.net.label_dim, sampled.facts.class_names)
    if own_guidance != 1:
        check_guidance(sampled, own_guidance, labels)
    return [Wanted(seed, label) for seed, label in zip(seeds, labels, strict=True)]


def vae_digest(pictures: Callable[[Tensor], Tensor]) -> str | None:
    """The digest of the autoencoder's weights; None of what makes pictures without one."""
    return pictures.sha256() if isinstance(pictures, LatentPictures) else None


def dtype_of(arguments: argparse.Namespace, device: torch.device) -> torch.dtype:
    """That of activations: --dtype, else what suits the device."""
    return getattr(torch, arguments.dtype or ("float16" if device.type == "cuda" else "float32"))


def _load_all(arguments: argparse.Namespace, device: torch.device) -> tuple[Sampled, Sampled | None]:
    dtype = dtype_of(arguments, device)
    sampled = load(arguments.snapshot, device, dtype)
    guide = load(arguments.guide, device, dtype) if arguments.guide else None
    if guide is not None:
        check_guide(guide, sampled)
    return sampled, guide
