"""Draw images from a snapshot.

    python recipe/sample.py SNAPSHOT --seeds 0-39 [--labels 0-9] --out DIR [--grid grid.png]

Image i depends on its seed and label alone, whatever the batch size; its label is the seed-th of --labels, cyclically.
Guidance: --guidance 2 --guide WEAKER_SNAPSHOT (autoguidance: less trained or smaller), or without --guide against the
same network without labels (classifier-free; wants label dropout in training).
A network that was trained on latents needs --vae, the autoencoder that they were encoded with.
"""

if __name__ == "__main__":  # before the imports that take seconds
    from recipe.interrupts import end_at_once

    end_at_once("sample.py")

import recipe  # noqa: F401, sets up threads, before torch is loaded

# isort: split

import argparse
from pathlib import Path

import torch

from recipe.command_line import exit_with, parse_integers
from recipe.edm2.images import image_grid
from recipe.edm2.samplers.generate import SamplerSettings
from recipe.sampling.networks import SampleError, check_guide, load, to_pictures, usable_device
from recipe.sampling.pictures import as_image, draw, labels_for, save_image, write_images


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
    vae = "of latents: the AutoencoderKL's folder, or OWNER/NAME on the Hugging Face hub"
    parser.add_argument("--vae", metavar="NAME", help=vae)
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
        sampled = load(arguments.snapshot, device, dtype)
        labels = labels_for(seeds, arguments.labels, sampled.net.label_dim)
        guide = load(arguments.guide, device, dtype) if arguments.guide else None
        if guide is not None:
            check_guide(guide, sampled)
        pictures = to_pictures(sampled, arguments.vae, device)
        noise = arguments.sigma_min, arguments.sigma_max, arguments.rho, arguments.churn
        settings = SamplerSettings(arguments.steps, *noise, guidance=arguments.guidance)
        guiding = None if guide is None else guide.net
        pixels = draw(sampled.net, seeds, labels, settings, arguments.batch_size, guiding, pictures)
        write_images(pixels, seeds, arguments.out)
        print(f"{arguments.out}: {len(seeds)} images of seeds {arguments.seeds}")
        if arguments.grid:
            arguments.grid.parent.mkdir(parents=True, exist_ok=True)
            save_image(as_image(image_grid(pixels, arguments.columns), arguments.zoom), arguments.grid)
            print(f"{arguments.grid}: the same images, {arguments.columns} to a row")
    except (ValueError, OSError) as error:
        exit_with("sample.py", error, on_every_rank=False)


if __name__ == "__main__":
    from recipe.interrupts import interruptible

    with interruptible("sample.py", "the images that are there are whole"):
        main()
