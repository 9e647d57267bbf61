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
    from recipe.lean_imports import import_less

    end_at_once("sample.py")
    import_less()

import recipe  # noqa: F401, sets up threads, before torch is loaded

# isort: split

import argparse
from pathlib import Path

from recipe.command_line import exit_with, parse_integers, say
from recipe.command_options import (
    OptionError,
    Options,
    address,
    check_file,
    check_folder,
    refuse_idle,
    whole_number,
    word,
)
from recipe.ranks import find_ranks
from recipe.sampling.drawing_options import add_drawing_options, check_drawing, load_drawing
from recipe.sampling.job import GRID_MOST, Grid, Job, is_archive
from recipe.sampling.outputs import picture_name
from recipe.sampling.preset_options import add_preset_options, say_differences, settle_preset
from recipe.storage.addresses import is_remote, open_place
from recipe.storage.own_pictures import FORMATS, check_free


def arguments_parser() -> Options:
    parser = Options("sample.py", "Draw images from a snapshot.")
    add = parser.add_argument
    add("--seeds", type=word("--seeds"), default="0-39", metavar="LIST", help="one image each (default 0-39)")
    out = "folder of the images, SEED.png, or a file .zip (official layout), .tar (WebDataset), .npz; local or s3://"
    add("--out", type=address("--out"), required=True, metavar="PLACE", help=out)
    add("--subdirs", action="store_true", help="of a folder: a subfolder for each 1000 seeds")
    grid = f"also write all images, of more than {GRID_MOST} the first, as one PNG"
    add("--grid", type=address("--grid"), metavar="FILE", help=grid)
    columns = "images in a row of the grid (default 10)"
    add("--columns", type=whole_number("--columns"), metavar="N", help=columns)
    zoom = "enlarge the grid's pixels, for small images (default 1)"
    add("--zoom", type=whole_number("--zoom", most=64), metavar="N", help=zoom)
    add_drawing_options(parser, needs_snapshot=False)
    add_preset_options(parser)
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


def sample(arguments: argparse.Namespace) -> None:
    """Draw and write what the options ask for. Raises ValueError, OSError."""
    seeds = check(arguments)
    settings = check_drawing(arguments)
    if arguments.preset is not None:
        say_differences(arguments.preset, settings)
    ranks = find_ranks()
    drawing = load_drawing(arguments, settings, seeds)
    job = Job(
        drawing.wanted,
        arguments.out,
        drawing.settings,
        arguments.subdirs,
        arguments.overwrite,
        None if arguments.grid is None else Grid(arguments.grid, arguments.columns or 10, arguments.zoom or 1),
        arguments.batch_size,
    )
    done = job.run(drawing.drawer, ranks)
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
