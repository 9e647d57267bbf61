"""Turn images into MDS shards, where training reads them.

    python recipe/prepare.py digits --out data/digits --resolution 16
    python recipe/prepare.py photos/ --out s3://bucket/photos --resolution 64 --crop center-crop-dhariwal
    composer -n 8 recipe/prepare.py photos/ --out s3://bucket/latents --resolution 512 --vae OWNER/NAME
    python recipe/prepare.py --inspect s3://bucket/photos

SOURCE is a folder (class folders give labels), a ZIP, a tar, a folder of tars or a name such as data-{000..123}.tar
(WebDataset), MDS shards, a Hugging Face data set (its folder, or hf:NAME), CIFAR's own tar, latents of the official
tool (img512-sd.zip), or the embedded `digits`: 5000 real handwritten digits. The result is complete or absent, does not
depend on the number of workers and ranks, and an interrupted preparation goes on where it was. With --vae, latents are
stored, encoded on each rank's GPU. More: docs/data.md.
"""

if __name__ == "__main__":  # before the imports that take seconds
    from recipe.interrupts import end_at_once
    from recipe.lean_imports import import_less

    end_at_once("prepare.py")
    import_less()

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from recipe.command_line import UserError, exit_with, say
from recipe.command_options import (
    Options,
    address,
    check_file,
    check_folder,
    local_path,
    refuse_idle,
    whole_number,
    word,
)
from recipe.preparation.inspection import inspect
from recipe.preparation.options import Settings
from recipe.preparation.pipeline import prepare_data
from recipe.preparation.sources.items import PreparationError
from recipe.preparation.sources.opening import DIGITS
from recipe.storage.addresses import is_remote
from recipe.storage.own_pictures import FORMATS

CROPS = {"center": "center-crop"}  # short names
OF_PREPARING = [
    "--resolution", "--crop", "--channels", "--background", "--labels", "--split", "--encoding", "--shard-size",
    "--compression", "--hashes", "--workers", "--vae-batch", "--vae-dtype", "--latent-dtype", "--whitening",
    "--skip-errors",
]  # fmt: skip
"""Options that do nothing with --inspect."""
DEFAULTS = {"background": "white", "shard_size": "64mb"}


def arguments_parser() -> Options:
    parser = Options("prepare.py", "Turn images into MDS shards.")

    def add(option: str, help: str, **more: Any) -> None:
        parser.add_argument(option, help=help, **{"type": word(option), **more})

    def switch(option: str, help: str) -> None:
        parser.add_argument(option, help=help, action="store_true")

    source = (
        "folder, ZIP, tar, folder of tars, data-{000..123}.tar, MDS shards, Hugging Face data set (folder or hf:NAME), "
        "or digits"
    )
    add("source", source, nargs="?", type=address("SOURCE"))
    add("--out", "local folder or s3://bucket/prefix of the shards", metavar="PLACE", type=address("--out"))
    resolution = "height and width in pixels (default: that of the first picture, which all must have; digits 32)"
    add("--resolution", resolution, metavar="N", type=whole_number("--resolution", least=0))
    add(
        "--crop",
        "center (default): square in the middle; center-crop-dhariwal: as ADM and the paper's ImageNet; "
        "none: pictures must be square",
    )
    channels = "1: grey, 3: RGB (default: 1 if the first pictures are grey)"
    add("--channels", channels, type=whole_number("--channels", least=0))
    add("--background", "colour behind transparent pixels (default white)")
    labels = "CSV, JSON or JSON lines: class id or class name of each file"
    add("--labels", labels, metavar="FILE", type=local_path("--labels"))
    add("--split", "of a Hugging Face data set, or of CIFAR (default train)")
    add("--encoding", "png (default); webp: smaller and faster, a column of bytes; raw: large, fast to read")
    add("--shard-size", "most bytes of a shard before compression (default 64mb)")
    add("--compression", "of whole shards: zstd, zstd:LEVEL, br, bz2, snappy (default none)")
    add("--hashes", "of shards, for streaming to check: for example sha1,xxh64, or none (default sha1)")
    workers = "processes of each rank (default: one per processor; 4 for a GPU)"
    add("--workers", workers, metavar="N", type=whole_number("--workers", most=4096))
    add_latents(parser)
    switch("--skip-errors", "leave files out that are no images; they are listed in skipped.json")
    switch("--overwrite", "replace another data set at --out, or another file at --sheet")
    add_inspection(parser)
    return parser


def add_inspection(parser: Options) -> None:
    """The options of looking at shards."""
    inspected = "print what shards hold and draw a contact sheet; nothing is prepared; of latents --vae decodes some"
    parser.add_argument("--inspect", type=address("--inspect"), metavar="PLACE", help=inspected)
    sheet = "PNG for the contact sheet (default NAME-contact-sheet.png)"
    parser.add_argument("--sheet", type=local_path("--sheet"), metavar="FILE", help=sheet)


def add_latents(parser: Options) -> None:
    """The options of latents."""
    add = parser.add_argument_group("latents").add_argument
    vae = "store latents of this AutoencoderKL: its folder, or OWNER/NAME on the Hugging Face hub"
    add("--vae", type=address("--vae"), metavar="NAME", help=vae)
    add("--vae-batch", type=whole_number("--vae-batch"), metavar="N", help="pictures encoded together (default 8)")
    dtype = "float32 (default), or float16 on GPUs: faster, rounds more"
    add("--vae-dtype", type=word("--vae-dtype"), metavar="DTYPE", help=dtype)
    stored = "of the stored moments: float32 (default) or float16"
    add("--latent-dtype", type=word("--latent-dtype"), metavar="DTYPE", help=stored)
    whitening = "constants: the paper's (default for 4 channels); measured: mean and std of these data"
    add("--whitening", type=word("--whitening"), metavar="HOW", help=whitening)


def check(arguments: argparse.Namespace) -> None:
    """What can be said against the options before a file is read. Raises UserError."""
    if arguments.inspect is not None:
        if arguments.source is not None or arguments.out is not None:
            raise PreparationError(f"--inspect {arguments.inspect}: prepares nothing; leave SOURCE and --out away")
        refuse_idle(arguments, OF_PREPARING, "does nothing with --inspect, which prepares nothing; leave it out")
        if arguments.sheet is not None:
            check_file(arguments.sheet, "--sheet", FORMATS)
        return
    refuse_idle(arguments, ["--sheet"], "is drawn by --inspect PLACE alone; leave it out")
    for name in ("source", "out"):
        if getattr(arguments, name) is None:
            raise PreparationError(f"{'--out' if name == 'out' else 'SOURCE'} is missing; see --help")
    if arguments.labels is not None and not arguments.labels.is_file():
        raise PreparationError(f"--labels {arguments.labels}: there is no such file; check the path")
    if is_remote(arguments.out):
        return
    out, source = Path(arguments.out).absolute(), Path(arguments.source).absolute()
    if source.is_dir() and source in out.parents:
        raise PreparationError(
            f"--out {arguments.out}: lies in SOURCE, which would then hold what is no picture; name a place beside it"
        )
    check_folder(out.parent, "--out")


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The options that decide what is stored. Raises PreparationError."""
    given = {option.name: getattr(arguments, option.name) for option in dataclasses.fields(Settings)}
    given["crop"] = CROPS.get(arguments.crop, arguments.crop)
    given["hashes"] = () if arguments.hashes == "none" else tuple((arguments.hashes or "sha1").split(","))
    given |= {name: value for name, value in DEFAULTS.items() if given[name] is None}
    return Settings(**given)


def run(arguments: argparse.Namespace) -> str:
    """Do what is asked for; returns what to say at the end. Raises UserError."""
    check(arguments)
    if arguments.inspect is not None:
        return inspect(arguments.inspect, arguments.sheet, arguments.vae, arguments.overwrite)
    if arguments.source == DIGITS and Path(DIGITS).exists():
        say(f"{DIGITS}: the handwritten digits that come along; the folder of that name here is ./{DIGITS}")
    settings = settings_of(arguments)
    facts, is_new = prepare_data(arguments.source, arguments.out, settings, arguments.workers, arguments.overwrite)
    if facts is None:
        return ""  # rank 0 has the facts, and speaks
    shape = f"{facts.img_channels}x{facts.img_resolution}x{facts.img_resolution}"
    skipped = f", {facts.num_skipped} items skipped (see skipped.json)" if facts.num_skipped else ""
    return (
        f"{arguments.out} {'now' if is_new else 'already'} holds {facts.num_images} images of {shape} in "
        f"{facts.label_dim} classes, sigma_data {facts.sigma_data:.3f}{skipped}"
    )


def main() -> None:
    try:
        say(run(arguments_parser().parse_args()))
    except UserError as error:
        exit_with("prepare.py", error, on_every_rank=False)
    except OSError as error:
        exit_with("prepare.py", f"{error.filename}: {error.strerror}; finished work is kept", on_every_rank=False)


if __name__ == "__main__":
    from recipe.interrupts import interruptible

    with interruptible("prepare.py", "the same command goes on"):
        main()
