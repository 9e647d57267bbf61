"""Draw images from a snapshot.

    python recipe/sample.py SNAPSHOT --seeds 0-39 [--labels 0-9] --out DIR [--grid grid.png]

Image i depends on its seed and label alone, whatever the batch size; its label is the seed-th of --labels, cyclically.
Guidance: --guidance 2 --guide WEAKER_SNAPSHOT (autoguidance: less trained or smaller), or without --guide against the
same network without labels (classifier-free; wants label dropout in training). --sampler and its options, and
--guidance-interval: docs/sampling.md.
A network that was trained on latents needs --vae, the autoencoder that they were encoded with.
"""

if __name__ == "__main__":  # before the imports that take seconds
    from recipe.interrupts import end_at_once

    end_at_once("sample.py")

import recipe  # noqa: F401, sets up threads, before torch is loaded

# isort: split

import argparse

import torch

from recipe.command_line import exit_with, parse_integers
from recipe.command_options import (
    OptionError,
    Options,
    address,
    check_file,
    check_folder,
    choice,
    local_path,
    real_number,
    refuse_idle,
    whole_number,
    word,
)
from recipe.edm2.images import image_grid
from recipe.sampling.networks import check_guidance, check_guide, load, to_pictures, usable_device
from recipe.sampling.pictures import as_image, check_places, draw, labels_for, write_images
from recipe.sampling.sampler_options import add_sampler_options, sampler_settings
from recipe.storage.own_pictures import FORMATS, save_picture


def arguments_parser() -> Options:
    parser = Options("sample.py", "Draw images from a snapshot.")
    add = parser.add_argument
    snapshot = ".safetensors file of a run's snapshots or posthoc folder, local or s3://"
    add("snapshot", type=address("SNAPSHOT"), help=snapshot)
    add("--seeds", type=word("--seeds"), default="0-39", metavar="LIST", help="one image each (default 0-39)")
    labels = "classes to go through; none = unconditional (default: all)"
    add("--labels", type=word("--labels"), metavar="LIST", help=labels)
    add("--out", type=local_path("--out"), required=True, metavar="DIR", help="folder of the images, SEED.png")
    add("--grid", type=local_path("--grid"), metavar="FILE", help="also write all images as one PNG")
    columns = "images in a row of the grid (default 10)"
    add("--columns", type=whole_number("--columns"), metavar="N", help=columns)
    zoom = "enlarge the grid's pixels, for small images (default 1)"
    add("--zoom", type=whole_number("--zoom", most=64), metavar="N", help=zoom)
    steps = "noise levels of the sampler (default 32)"
    add("--steps", type=whole_number("--steps"), default=32, metavar="N", help=steps)
    add("--sigma-min", type=real_number("--sigma-min", above=0), default=0.002, help="last noise level (default 0.002)")
    add("--sigma-max", type=real_number("--sigma-max", above=0), default=80.0, help="first noise level (default 80)")
    add("--rho", type=real_number("--rho", above=0), default=7.0, help="spacing of the noise levels (default 7)")
    add("--guidance", type=real_number("--guidance", least=0), default=1.0, help="1 = none (default)")
    add("--guide", type=address("--guide"), metavar="SNAPSHOT", help="network to guide away from")
    add_sampler_options(parser)
    vae = "of latents: the AutoencoderKL's folder, or OWNER/NAME on the Hugging Face hub"
    add("--vae", type=address("--vae"), metavar="NAME", help=vae)
    batch_size = "images drawn at once (default 64)"
    add("--batch-size", type=whole_number("--batch-size"), default=64, metavar="N", help=batch_size)
    add("--device", type=word("--device"), default="cuda" if torch.cuda.is_available() else "cpu")
    dtype = "float32, float16 or bfloat16 (default: float16 on CUDA, else float32)"
    add("--dtype", type=choice("--dtype", "float32", "float16", "bfloat16"), help=dtype)
    add("--overwrite", action="store_true", help="replace pictures at --out and --grid that are not sample.py's own")
    return parser


def check(arguments: argparse.Namespace) -> list[int]:
    """What can be said against the options before a file is read; returns the seeds. Raises ValueError."""
    try:
        seeds = parse_integers(arguments.seeds)
    except ValueError as error:
        raise OptionError(f"--seeds: {error}") from None
    if len(set(seeds)) < len(seeds):
        raise OptionError(f"--seeds {arguments.seeds}: names a seed twice, whose picture would be the same")
    if arguments.labels not in (None, "none"):
        try:
            parse_integers(arguments.labels)
        except ValueError as error:
            raise OptionError(f"--labels: {error}; or none") from None
    if arguments.sigma_min >= arguments.sigma_max:
        noise = f"sigma_min {arguments.sigma_min} and sigma_max {arguments.sigma_max}"
        raise OptionError(f"--sigma-min: {noise} do not satisfy 0 < sigma_min < sigma_max")
    if arguments.guide is not None and arguments.guidance == 1:
        raise OptionError(f"--guide {arguments.guide}: does nothing at --guidance 1; add for example --guidance 2")
    if arguments.guide == arguments.snapshot:
        raise OptionError(f"--guide {arguments.guide}: is the snapshot itself, and would do nothing; name a weaker one")
    if arguments.grid is None:
        refuse_idle(arguments, ["--columns", "--zoom"], "is of the grid, and there is none; add --grid grid.png")
    check_folder(arguments.out, "--out")
    if arguments.grid is not None:
        check_file(arguments.grid, "--grid", FORMATS)
    check_places(arguments.out, seeds, arguments.grid, arguments.overwrite)
    return seeds


def sample(arguments: argparse.Namespace) -> None:
    """Draw and write what the options ask for. Raises ValueError, OSError."""
    seeds = check(arguments)
    settings = sampler_settings(arguments)
    device = usable_device(arguments.device)
    dtype = getattr(torch, arguments.dtype or ("float16" if device.type == "cuda" else "float32"))
    sampled = load(arguments.snapshot, device, dtype)
    labels = labels_for(seeds, arguments.labels, sampled.net.label_dim)
    guide = load(arguments.guide, device, dtype) if arguments.guide else None
    if guide is not None:
        check_guide(guide, sampled)
    elif arguments.guidance != 1:
        check_guidance(sampled, arguments.guidance, labels)
    pictures = to_pictures(sampled, arguments.vae, device)
    guiding = None if guide is None else guide.net
    pixels = draw(sampled.net, seeds, labels, settings, arguments.batch_size, guiding, pictures)
    write_images(pixels, seeds, arguments.out)
    print(f"{arguments.out}: {len(seeds)} images of seeds {arguments.seeds}")
    if arguments.grid is not None:
        arguments.grid.parent.mkdir(parents=True, exist_ok=True)
        columns = arguments.columns or 10
        save_picture(as_image(image_grid(pixels, columns), arguments.zoom or 1), arguments.grid)
        print(f"{arguments.grid}: the same images, {columns} to a row")


def main() -> None:
    arguments = arguments_parser().parse_args()
    try:
        sample(arguments)
    except (ValueError, OSError) as error:
        exit_with("sample.py", error, on_every_rank=False)


if __name__ == "__main__":
    from recipe.interrupts import interruptible

    with interruptible("sample.py", "the images that are there are whole"):
        main()
