"""Make EMA weights of any length from a run's snapshots, after training (Section 3.2).

    python recipe/reconstruct.py RUN --sigma-rel 0.05,0.10:0.20:0.05 [--nimg 8Mi] [--out DIR]

RUN is a run's folder, local or s3://bucket/folder, of which only what is needed is read, and DIR likewise. Writes
posthoc-NIMG-SIGMA_REL.safetensors files, which recipe/sample.py reads.
"""

if __name__ == "__main__":  # before the imports that take seconds
    from recipe.interrupts import end_at_once
    from recipe.lean_imports import import_less

    end_at_once("reconstruct.py")
    import_less()

import recipe  # noqa: F401, sets up threads, before torch is loaded

# isort: split

import dataclasses
import functools
from pathlib import Path

import torch

from recipe.command_line import exit_with, parse_numbers, unique
from recipe.command_options import Options, address, check_folder, choice, word
from recipe.configuration.spans import images_in
from recipe.edm2.ema import SIGMA_REL_LIMIT
from recipe.storage.addresses import is_remote, open_place
from recipe.weights.posthoc import PosthocError, reconstruct, solve, usable_snapshots
from recipe.weights.snapshots import list_snapshots, save_snapshot, snapshot_name


def lengths(text: str) -> list[float]:
    """The wanted lengths; raises ValueError naming the value and the rule."""
    try:
        found = unique(parse_numbers(text))
    except ValueError as error:
        raise ValueError(f"--sigma-rel: {error}") from None
    for length in found:
        if not 0 < length < SIGMA_REL_LIMIT:
            raise ValueError(f"sigma_rel {length:g} must be above 0 and below 12^-0.5 = {SIGMA_REL_LIMIT:.4f}")
        if round(length, 3) != length:
            raise ValueError(f"sigma_rel {length:g} must have at most 3 decimals, as the names of the files")
    return found


def run(
    folder: Path | str, sigma_rels: list[float], nimg: int | None, out: Path | str, dtype: torch.dtype, force: bool
) -> list[str]:
    """Write one file per length below `out`; returns their addresses.

    Raises:
        PosthocError, SnapshotError, StorageError: snapshots that are missing, damaged or do not support a length.
    """
    if not is_remote(folder) and not Path(folder).is_dir():
        raise PosthocError(f"{folder}: no such folder; name the folder of a run, for example runs/edm2")
    snapshots, target = usable_snapshots(list_snapshots(f"{folder}/snapshots"), nimg)
    coefficients, errors = solve(snapshots, target, sigma_rels, force)
    weights, last = reconstruct(snapshots, coefficients, dtype)
    paths, place = [], open_place(out)
    for index, sigma_rel in enumerate(sigma_rels):
        name = snapshot_name(target, sigma_rel, "posthoc")
        extra = last.extra | {"profile_error": float(errors[index]), "snapshots": len(snapshots)}
        info = dataclasses.replace(last, nimg=target, sigma_rel=sigma_rel, extra=extra)
        place.make(name, functools.partial(save_snapshot, tensors=weights[index], info=info))
        weights[index] = {}
        paths.append(f"{out}/{name}")
        print(
            f"{out}/{name}  sigma_rel {sigma_rel:g}, profile error {errors[index]:.2%} from {len(snapshots)} snapshots"
        )
    return paths


def main() -> None:
    parser = Options("reconstruct.py", "Make EMA weights of any length from a run's snapshots.")
    add = parser.add_argument
    add("run", type=address("RUN"), help="folder of the run, local or s3://bucket/folder")
    wanted = "lengths: 0.05,0.10 or start:end:step"
    add("--sigma-rel", type=word("--sigma-rel"), required=True, metavar="LIST", help=wanted)
    when = "time of the average, a snapshot's (default: the latest)"
    add("--nimg", type=word("--nimg"), metavar="IMAGES", help=when)
    add("--out", type=address("--out"), metavar="PLACE", help="where the files go (default: RUN/posthoc)")
    dtype = "stored precision: float16 (default) or float32"
    add("--dtype", type=choice("--dtype", "float16", "float32"), default="float16", help=dtype)
    add("--force", action="store_true", help="also make averages that the snapshots support poorly")
    arguments = parser.parse_args()
    try:
        run_folder = arguments.run.rstrip("/") or "/"
        out = arguments.out or f"{run_folder}/posthoc"
        nimg = None if arguments.nimg is None else images_in(arguments.nimg, "--nimg")
        wanted = lengths(arguments.sigma_rel)
        if not is_remote(out):
            check_folder(Path(out), "--out")
        run(run_folder, wanted, nimg, out, getattr(torch, arguments.dtype), arguments.force)
    except (ValueError, OSError) as error:
        exit_with("reconstruct.py", error, on_every_rank=False)


if __name__ == "__main__":
    from recipe.interrupts import interruptible

    with interruptible("reconstruct.py", "the files that are there are whole"):
        main()
