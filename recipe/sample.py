"""Draw images from a snapshot.

    python recipe/sample.py SNAPSHOT --seeds 0-39 [--labels 0-9] --out DIR [--grid grid.png]
    composer -n 8 recipe/sample.py s3://bucket/run/posthoc/FILE --seeds 0-49999 --out s3://bucket/samples.npz
    python recipe/sample.py --preset edm2-img512-s-guid-fid --weights published --vae VAE --out DIR

The bytes of a picture depend on its seed and label, the snapshot and the settings of the sampler alone: not on the
number of ranks, the batch size or the other seeds. The same command goes on where it was interrupted, and draws what is
missing. --out is a folder (SEED.png) or, by its ending, a .zip, .tar or .npz. More: docs/sampling-at-scale.md.
Guidance: --guidance 2 --guide WEAKER_SNAPSHOT (autoguidance: less trained or smaller), or without --guide against the
same network without labels (classifier-free; wants label dropout in training). --sampler and its options, and
--guidance-interval: docs/sampling.md. --preset list prints the published combinations.
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

from recipe.command_line import exit_with, parse_integers, say
from recipe.command_options import (
    OptionError,
    Options,
    address,
    check_file,
    check_folder,
    choice,
    real_number,
    refuse_idle,
    whole_number,
    word,
)
from recipe.ranks import find_ranks
from recipe.sampling.distributed import Drawer, Wanted
from recipe.sampling.job import GRID_MOST, Grid, Job, is_archive
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
from recipe.sampling.outputs import picture_name
from recipe.sampling.preset_options import add_preset_options, say_differences, settle_preset
from recipe.sampling.sampler_options import add_sampler_options, sampler_settings
from recipe.sampling.settings import drawn_by
from recipe.storage.addresses import is_remote, open_place
from recipe.storage.own_pictures import FORMATS, check_free


def arguments_parser() -> Options:
    parser = Options("sample.py", "Draw images from a snapshot.")
    add = parser.add_argument
    snapshot = ".safetensors file of a run's snapshots or posthoc folder, local or s3://"
    add("snapshot", type=address("SNAPSHOT"), nargs="?", metavar="SNAPSHOT", help=snapshot)
    add("--seeds", type=word("--seeds"), default="0-39", metavar="LIST", help="one image each (default 0-39)")
    labels = "classes to go through, by id or name; balanced = all (default), random, or none = unconditional"
    add("--labels", type=word("--labels"), metavar="LIST", help=labels)
    out = "folder of the images, SEED.png, or a file .zip (official layout), .tar (WebDataset), .npz; local or s3://"
    add("--out", type=address("--out"), required=True, metavar="PLACE", help=out)
    add("--subdirs", action="store_true", help="of a folder: a subfolder for each 1000 seeds")
    grid = f"also write all images, of more than {GRID_MOST} the first, as one PNG"
    add("--grid", type=address("--grid"), metavar="FILE", help=grid)
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
    add_preset_options(parser)
    vae = "of latents: the AutoencoderKL's folder, or OWNER/NAME on the Hugging Face hub"
    add("--vae", type=address("--vae"), metavar="NAME", help=vae)
    batch_size = "images in memory at once, which changes no image (default 64)"
    add("--batch-size", type=whole_number("--batch-size"), default=64, metavar="N", help=batch_size)
    add("--device", type=word("--device"), default="cuda" if torch.cuda.is_available() else "cpu")
    dtype = "float32, float16 or bfloat16 (default: float16 on CUDA, else float32)"
    add("--dtype", type=choice("--dtype", "float32", "float16", "bfloat16"), help=dtype)
    overwrite = "replace what is at --out and --grid and not sample.py's own, or drawn by other settings"
    add("--overwrite", action="store_true", help=overwrite)
    return parser


def check(arguments: argparse.Namespace) -> list[int]:
    """What can be said against the options before a file is read, a preset filled in; returns the seeds.

    Raises:
        ValueError: what is wrong with them.
    """
    try:
        seeds = parse_integers(arguments.seeds)
    except ValueError as error:
        raise OptionError(f"--seeds: {error}") from None
    settle_preset(arguments)
    if len(set(seeds)) < len(seeds):
        raise OptionError(f"--seeds {arguments.seeds}: names a seed twice, whose picture would be the same")
    if arguments.sigma_min >= arguments.sigma_max:
        noise = f"sigma_min {arguments.sigma_min} and sigma_max {arguments.sigma_max}"
        raise OptionError(f"--sigma-min: {noise} do not satisfy 0 < sigma_min < sigma_max")
    if arguments.guide is not None and arguments.guidance == 1:
        raise OptionError(f"--guide {arguments.guide}: does nothing at --guidance 1; add for example --guidance 2")
    if arguments.guide == arguments.snapshot:
        raise OptionError(f"--guide {arguments.guide}: is the snapshot itself, and would do nothing; name a weaker one")
    if arguments.grid is None:
        refuse_idle(arguments, ["--columns", "--zoom"], "is of the grid, and there is none; add --grid grid.png")
    check_out(arguments)
    if arguments.grid is not None:
        check_grid_place(arguments, seeds)
    return seeds


def check_out(arguments: argparse.Namespace) -> None:
    """Raises ValueError if pictures cannot go to --out."""
    archive = is_archive(arguments.out)
    if archive:
        refuse_idle(arguments, ["--subdirs"], f"is of a folder, and --out {arguments.out} is a file; leave it out")
    if is_remote(arguments.out):
        open_place(arguments.out)
    elif archive:
        check_file(Path(arguments.out), "--out", [Path(arguments.out).suffix.lower()])
    else:
        check_folder(Path(arguments.out), "--out")


def check_grid_place(arguments: argparse.Namespace, seeds: list[int]) -> None:
    """Raises ValueError if the grid cannot go to --grid."""
    grid, out = arguments.grid, Path(arguments.out).absolute()
    if is_remote(grid):
        open_place(grid)
        if Path(grid).suffix.lower() not in FORMATS:
            raise OptionError(f"--grid {grid}: must end with the kind of file, {', '.join(FORMATS)}")
    else:
        check_file(Path(grid), "--grid", FORMATS)
    pictures = {out / picture_name(seed, arguments.subdirs) for seed in seeds}
    if Path(grid).absolute() in pictures:
        raise OptionError(f"--grid {grid}: is the place of one of the images; give it another name")
    check_free(grid, arguments.overwrite)


def load_all(arguments: argparse.Namespace, device: torch.device) -> tuple[Sampled, Sampled | None]:
    """The network and its guide, if there is one, in the precision that was asked for. Raises ValueError."""
    dtype = getattr(torch, arguments.dtype or ("float16" if device.type == "cuda" else "float32"))
    sampled = load(arguments.snapshot, device, dtype)
    guide = load(arguments.guide, device, dtype) if arguments.guide else None
    if guide is not None:
        check_guide(guide, sampled)
    return sampled, guide


def sample(arguments: argparse.Namespace) -> None:
    """Draw and write what the options ask for. Raises ValueError, OSError."""
    seeds = check(arguments)
    settings = sampler_settings(arguments)
    if arguments.preset is not None:
        say_differences(arguments.preset, settings)
    ranks = find_ranks()
    device = usable_device(arguments.device)
    sampled, guide = load_all(arguments, device)
    labels = labels_for(seeds, arguments.labels, sampled.net.label_dim, sampled.facts.class_names)
    if guide is None and arguments.guidance != 1:
        check_guidance(sampled, arguments.guidance, labels)
    pictures = to_pictures(sampled, arguments.vae, device)
    vae = pictures.sha256() if isinstance(pictures, LatentPictures) else None
    job = Job(
        [Wanted(seed, label) for seed, label in zip(seeds, labels, strict=True)],
        arguments.out,
        drawn_by(sampled, guide, settings, vae),
        arguments.subdirs,
        arguments.overwrite,
        None if arguments.grid is None else Grid(arguments.grid, arguments.columns or 10, arguments.zoom or 1),
        arguments.batch_size,
    )
    done = job.run(Drawer(sampled.net, settings, None if guide is None else guide.net, pictures), ranks)
    say(f"{arguments.out}: {len(seeds)} images of seeds {arguments.seeds}; {done}")
    if job.grid is not None:
        say(f"{arguments.grid}: the first {len(job.shown)} of them, {job.grid.columns} to a row")


def main() -> None:
    arguments = arguments_parser().parse_args()
    try:
        sample(arguments)
    except (ValueError, OSError) as error:
        exit_with("sample.py", error, on_every_rank=False)


if __name__ == "__main__":
    from recipe.interrupts import interruptible

    with interruptible("sample.py", "the images that are there are whole; the same command goes on"):
        main()
