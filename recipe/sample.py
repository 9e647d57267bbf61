"""Draw images from a snapshot.

    python recipe/sample.py SNAPSHOT --seeds 0-39 [--labels 0-9] --out DIR [--grid grid.png]

Image i depends on its seed and label alone, whatever the batch size; its label is the seed-th of --labels, cyclically.
Guidance: --guidance 2 --guide WEAKER_SNAPSHOT (autoguidance: less trained or smaller), or without --guide against the
same network without labels (classifier-free; wants label dropout in training).
A network that was trained on latents needs --vae, the autoencoder that they were encoded with.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from recipe.arguments import parse_integers
from recipe.edm2.generate import SamplerSettings, generate_batches
from recipe.edm2.images import image_grid, to_pixels
from recipe.edm2.latents import STABLE_DIFFUSION, Whitening, unwhiten
from recipe.edm2.precond import Precond
from recipe.storage.snapshots import SnapshotError, load_network


class SampleError(ValueError):
    """Arguments that do not fit the network; the message names them."""


def labels_for(seeds: Sequence[int], wanted: str | None, label_dim: int) -> list[int]:
    """The class of each seed: the seed-th of the wanted ones, cyclically; all classes if None; -1 = unconditional.

    Raises:
        SampleError: a class that the network does not know.
    """
    if label_dim == 0:
        if wanted is not None:
            raise SampleError(f"--labels {wanted}: the network is unconditional; leave --labels out")
        return [-1] * len(seeds)
    if wanted == "none":
        return [-1] * len(seeds)
    classes = list(range(label_dim)) if wanted is None else parse_integers(wanted)
    if max(classes) >= label_dim:
        raise SampleError(f"--labels {wanted}: the network knows the classes 0 to {label_dim - 1}")
    return [classes[seed % len(classes)] for seed in seeds]


def draw(
    net: Precond, seeds: Sequence[int], labels: Sequence[int], settings: SamplerSettings, batch_size: int,
    guide: Precond | None = None, pictures: Callable[[Tensor], Tensor] = to_pixels,
) -> Tensor:  # fmt: skip
    """uint8 images [N, C, H, W], one per seed, with a progress bar; `pictures` makes them of what the network makes."""
    batches = generate_batches(net, seeds, labels, settings, batch_size, guide)
    total = math.ceil(len(seeds) / batch_size)
    progress = tqdm(batches, total=total, desc="sample", unit="batch", disable=None)
    return torch.cat([pictures(batch) for batch in progress])


def as_image(pixels: Tensor, zoom: int = 1) -> Image.Image:
    """A Pillow image from uint8 [H, W, C] with 1 or 3 channels, each pixel a square of `zoom` x `zoom`."""
    image = Image.fromarray(pixels.squeeze(2).numpy())
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def write_images(pixels: Tensor, seeds: Sequence[int], out: Path) -> None:
    """One PNG per image, named by its seed."""
    out.mkdir(parents=True, exist_ok=True)
    for image, seed in zip(pixels, seeds, strict=True):
        as_image(image.permute(1, 2, 0)).save(out / f"{seed:06d}.png")


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
    from recipe.preparation.vae import Vae, find_vae  # its library takes seconds to import

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


def arguments_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Draw images from a snapshot.")
    parser.add_argument("snapshot", help=".safetensors file of a run's snapshots or posthoc folder, local or s3://")
    parser.add_argument("--seeds", default="0-39", metavar="LIST", help="one image each (default 0-39)")
    parser.add_argument("--labels", metavar="LIST", help="classes to go through; none = unconditional (default: all)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the images, SEED.png")
    parser.add_argument("--grid", type=Path, help="also write all images as one PNG")
    parser.add_argument("--columns", type=int, default=10, help="images in a row of the grid (default 10)")
    parser.add_argument("--zoom", type=int, default=1, help="enlarge the grid's pixels, for small images (default 1)")
    parser.add_argument("--steps", type=int, default=32, help="noise levels of the sampler (default 32)")
    parser.add_argument("--sigma-min", type=float, default=0.002)
    parser.add_argument("--sigma-max", type=float, default=80.0)
    parser.add_argument("--rho", type=float, default=7.0)
    parser.add_argument("--churn", type=float, default=0.0, help="S_churn; 0 = deterministic (default)")
    parser.add_argument("--guidance", type=float, default=1.0, help="1 = none (default)")
    parser.add_argument("--guide", metavar="SNAPSHOT", help="network to guide away from")
    parser.add_argument("--vae", metavar="NAME", help="of latents: the AutoencoderKL's folder, or OWNER/NAME on the "
                        "Hugging Face hub")  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=64, help="images drawn at once (default 64)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="float16 on CUDA, else float32")
    return parser


def main() -> None:
    arguments = arguments_parser().parse_args()
    try:
        for name in ("steps", "columns", "zoom", "batch_size"):
            if getattr(arguments, name) < 1:
                raise SampleError(f"--{name.replace('_', '-')} {getattr(arguments, name)}: must be at least 1")
        device = usable_device(arguments.device)
        dtype = getattr(torch, arguments.dtype or ("float16" if device.type == "cuda" else "float32"))
        seeds = parse_integers(arguments.seeds)
        net, dataset = load(arguments.snapshot, device, dtype)
        labels = labels_for(seeds, arguments.labels, net.label_dim)
        guide, about = load(arguments.guide, device, dtype) if arguments.guide else (None, {})
        if guide:
            check_guide(arguments.guide, guide, about, arguments.snapshot, net, dataset)
        pictures = to_pictures(arguments.snapshot, net, dataset, arguments.vae, device)
        settings = SamplerSettings(
            arguments.steps, arguments.sigma_min, arguments.sigma_max, arguments.rho, arguments.churn,
            guidance=arguments.guidance,
        )  # fmt: skip
        pixels = draw(net, seeds, labels, settings, arguments.batch_size, guide, pictures)
        write_images(pixels, seeds, arguments.out)
        print(f"{arguments.out}: {len(seeds)} images of seeds {arguments.seeds}")
        if arguments.grid:
            arguments.grid.parent.mkdir(parents=True, exist_ok=True)
            as_image(image_grid(pixels, arguments.columns), arguments.zoom).save(arguments.grid)
            print(f"{arguments.grid}: the same images, {arguments.columns} to a row")
    except (SampleError, SnapshotError, ValueError, OSError) as error:
        print(f"sample.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
