"""Turn images into MDS shards, where training reads them.

    python recipe/prepare.py digits --out data/digits --resolution 16
    python recipe/prepare.py photos/ --out s3://bucket/photos --resolution 64 --crop center-crop-dhariwal
    composer -n 8 recipe/prepare.py photos/ --out s3://bucket/latents --resolution 512 --vae OWNER/NAME
    python recipe/prepare.py --inspect s3://bucket/photos

SOURCE is a folder (class folders give labels), a ZIP, a tar, a folder of tars or a name such as data-{000..123}.tar
(WebDataset), MDS shards, a Hugging Face data set (its folder, or hf:NAME), latents of the official tool
(img512-sd.zip), or the embedded `digits`: 5000 real handwritten digits. The result is complete or absent, does not
depend on the number of workers and ranks, and an interrupted preparation goes on where it was. With --vae, latents are
stored, encoded on each rank's GPU. More: docs/data.md.
"""

if __name__ == "__main__":  # before the imports that take seconds
    from recipe.interrupts import end_at_once

    end_at_once("prepare.py")

import argparse
import dataclasses
from pathlib import Path

from recipe.command_line import UserError, exit_with, say
from recipe.preparation.inspection import inspect
from recipe.preparation.options import Settings
from recipe.preparation.pipeline import prepare_data
from recipe.preparation.sources.items import PreparationError

CROPS = {"center": "center-crop"}  # short names


def arguments_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Turn images into MDS shards.")
    add = parser.add_argument
    add("source", nargs="?", help="folder, ZIP, tar, folder of tars, data-{000..123}.tar, MDS shards, Hugging "
        "Face data set (folder or hf:NAME), or digits")  # fmt: skip
    add("--out", metavar="PLACE", help="local folder or s3://bucket/prefix of the shards")
    add("--resolution", type=int, metavar="N", help="height and width in pixels (default: that of the first picture, "
        "which all must have; digits 32)")  # fmt: skip
    add("--crop", help="center (default): square in the middle; center-crop-dhariwal: as ADM and the paper's ImageNet; "
        "none: pictures must be square")  # fmt: skip
    add("--channels", type=int, help="1: grey, 3: RGB (default: 1 if the first pictures are grey)")
    add("--background", default="white", help="colour behind transparent pixels (default white)")
    add("--labels", type=Path, metavar="FILE", help="CSV, JSON or JSON lines: class id or class name of each file")
    add("--split", help="of a Hugging Face data set")
    add("--encoding", help="png (default); webp: smaller and faster, a column of bytes; raw: large, fast to read")
    add("--shard-size", default="64mb", help="most bytes of a shard before compression (default 64mb)")
    add("--compression", help="of whole shards: zstd, zstd:LEVEL, br, bz2, snappy (default none)")
    add(
        "--hashes",
        default="sha1",
        help="of shards, for streaming to check: for example sha1,xxh64, or none (default sha1)",
    )
    add("--workers", type=int, metavar="N", help="processes of each rank (default: one per processor; 4 for a GPU)")
    latents = parser.add_argument_group("latents").add_argument
    latents("--vae", metavar="NAME", help="store latents of this AutoencoderKL: its folder, or OWNER/NAME on "
            "the Hugging Face hub")  # fmt: skip
    latents("--vae-batch", type=int, metavar="N", help="pictures encoded together (default 8)")
    latents("--vae-dtype", metavar="DTYPE", help="float32 (default), or float16 on GPUs: faster, rounds more")
    latents("--latent-dtype", metavar="DTYPE", help="of the stored moments: float32 (default) or float16")
    latents("--whitening", help="constants: the paper's (default for 4 channels); measured: mean and std of these data")
    add(
        "--skip-errors", action="store_true", help="leave files out that are no images; they are listed in skipped.json"
    )
    add("--overwrite", action="store_true", help="replace another data set at --out")
    add("--inspect", metavar="PLACE", help="print what shards hold and draw a contact sheet; nothing is prepared; "
        "of latents --vae decodes some")  # fmt: skip
    add("--sheet", type=Path, metavar="FILE", help="PNG for the contact sheet (default NAME-contact-sheet.png)")
    return parser


def run(arguments: argparse.Namespace) -> str:
    """Do what is asked for; returns what to say at the end. Raises PreparationError, StorageError."""
    if arguments.inspect is not None:
        if arguments.source is not None or arguments.out is not None:
            raise PreparationError(f"--inspect {arguments.inspect}: prepares nothing; leave SOURCE and --out away")
        return inspect(arguments.inspect, arguments.sheet, arguments.vae)
    for name in ("source", "out"):
        if getattr(arguments, name) is None:
            raise PreparationError(f"{'--out' if name == 'out' else 'SOURCE'} is missing; see --help")
    if arguments.workers is not None and arguments.workers < 1:
        raise PreparationError(f"--workers {arguments.workers}: must be at least 1")
    given = {option.name: getattr(arguments, option.name) for option in dataclasses.fields(Settings)}
    given["crop"] = CROPS.get(arguments.crop, arguments.crop)
    given["hashes"] = () if arguments.hashes == "none" else tuple(arguments.hashes.split(","))
    settings = Settings(**given)
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
