"""Fetch a run, or parts of it, from object storage.

    python recipe/fetch.py s3://bucket/runs/edm2 --list
    python recipe/fetch.py s3://bucket/runs/edm2 --what snapshots --sigma-rel 0.05 --nimg latest --out runs/edm2
    python recipe/fetch.py s3://bucket/runs/edm2 --what checkpoint --out runs/edm2

Files come under their own names, checked, several at once. Started again it goes on where it stopped. The server and
the credentials are those of the environment (S3_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...). RUN may also be a local folder.
"""

if __name__ == "__main__":  # before the imports that take seconds
    from recipe.interrupts import end_at_once
    from recipe.lean_imports import import_less

    end_at_once("fetch.py")
    import_less()

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from recipe.command_line import exit_with, parse_numbers
from recipe.command_options import Options, address, check_folder, choice, local_path, refuse_idle, whole_number, word
from recipe.configuration.spans import images_in
from recipe.progress import progress
from recipe.storage.addresses import is_remote, open_place
from recipe.storage.fetching import fetch_files
from recipe.storage.files import file_sha256
from recipe.storage.places import Entry, MissingError, Place, is_inside
from recipe.weights.checkpoints import list_checkpoints
from recipe.weights.run_contents import FetchError, choose, snapshot_fields
from recipe.weights.snapshots import check_finite, is_intact

NOTE = ".edm2-fetch.txt"  # in the folder of what was fetched: the address of its run

WHAT = ("all", "snapshots", "posthoc", "checkpoint", "config")


def print_table(place: Place, entries: Sequence[Entry]) -> None:
    """What a run holds, a line per snapshot, checkpoint or other file."""
    rows: list[tuple[str, ...]] = [("kind", "nimg", "sigma_rel", "MB", "modified", "name")]
    for checkpoint in list_checkpoints(place.child("checkpoints")):
        modified = max(entry.modified for entry in checkpoint.files)
        rows.append(_row("checkpoint", "", "", checkpoint.size, modified, f"checkpoints/{checkpoint.name}"))
    for entry in entries:
        if fields := snapshot_fields(entry.name):
            nimg, sigma_rel = fields["nimg"].lstrip("0"), fields["sigma_rel"]
            rows.append(_row(fields["kind"], nimg, sigma_rel, entry.size, entry.modified, entry.name))
        elif not entry.name.startswith("checkpoints/"):
            rows.append(_row(entry.name.split("/")[0], "", "", entry.size, entry.modified, entry.name))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(kind: str, nimg: str, sigma_rel: str, size: int, modified: float, name: str) -> tuple[str, ...]:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(modified))
    return kind, nimg, sigma_rel, f"{size / 1e6:.1f}", when, name


def fetch(place: Place, entries: Sequence[Entry], out: Path, jobs: int) -> None:
    """Copy the entries to `out` with a progress bar. Raises StorageError; SnapshotError if one is not finite."""
    unsafe = [entry.name for entry in entries if not is_inside(entry.name)]
    if unsafe:
        raise FetchError(f"{place.address}: holds the name {unsafe[0]!r}, which would leave {out}; nothing was fetched")
    check_out(place, entries, out)
    total = sum(entry.size for entry in entries)
    with progress(total, "fetch", "B", unit_scale=True) as bar:
        try:
            fetch_files(place, [entry.name for entry in entries], out, jobs, bar.update, is_intact)
        finally:
            if any((out / entry.name).is_file() for entry in entries):
                (out / NOTE).write_text(place.address)
    for entry in entries:
        if snapshot_fields(entry.name):
            check_finite(out / entry.name)
    print(f"{out}: {len(entries)} files, {total / 1e6:.1f} MB, checked")


def check_out(place: Place, entries: Sequence[Entry], out: Path) -> None:
    """Raises FetchError if a file that would come is in `out` already as another one, unless of an earlier fetch.

    Of a run that was, newer versions of its files may come.
    """
    note = out / NOTE
    if note.is_file() and note.read_text() == place.address:
        return
    for entry in entries:
        path = out / entry.name
        if not path.is_file():
            continue
        stored = place.sha256(entry.name)
        if path.stat().st_size != entry.size or stored not in (None, file_sha256(path)):
            raise FetchError(
                f"--out {out}: {entry.name} is there already, and is another one than that of {place.address}; name an "
                "empty folder"
            )


def arguments_parser() -> Options:
    parser = Options("fetch.py", "Fetch a run, or parts of it, from object storage.")
    add = parser.add_argument
    add("run", type=address("RUN"), help="s3://bucket/folder of a run, or a local folder")
    what = f"one of {', '.join(WHAT)}; checkpoint = the newest whole one (default: all)"
    add("--what", type=choice("--what", *WHAT), metavar="PART", help=what)
    sigma_rel = "only snapshots, of these lengths: for example 0.05,0.1"
    add("--sigma-rel", type=word("--sigma-rel"), metavar="LIST", help=sigma_rel)
    nimg = "only snapshots, of this time: 8Mi, latest or all (default)"
    add("--nimg", type=word("--nimg"), metavar="IMAGES", help=nimg)
    add("--out", type=local_path("--out"), metavar="DIR", help="folder that the files go to")
    add("--jobs", type=whole_number("--jobs", most=1024), metavar="N", help="files at once (default 8)")
    add("--list", action="store_true", help="only print what there is")
    return parser


def check(arguments: argparse.Namespace) -> list[float] | None:
    """What can be said against the options before anything is asked of a server; returns the lengths.

    Raises:
        ValueError: it says what.
    """
    if arguments.list:
        idle = ["--what", "--sigma-rel", "--nimg", "--out", "--jobs"]
        refuse_idle(arguments, idle, "does nothing with --list, which prints all that there is; leave one of them out")
        return None
    if arguments.out is None:
        raise FetchError("--out is missing; name the folder that the files go to, or ask for --list")
    if arguments.what in ("checkpoint", "config"):
        idle = f"chooses snapshots, not --what {arguments.what}; leave it out"
        refuse_idle(arguments, ["--sigma-rel", "--nimg"], idle)
    if arguments.nimg not in (None, "latest", "all"):
        images_in(arguments.nimg, "--nimg", ", or latest, or all")
    check_folder(arguments.out, "--out")
    if not is_remote(arguments.run) and arguments.out.resolve() == Path(arguments.run).resolve():
        raise FetchError(f"--out {arguments.out}: is the run's own folder; name another one")
    try:
        return None if arguments.sigma_rel is None else parse_numbers(arguments.sigma_rel)
    except ValueError as error:
        raise FetchError(f"--sigma-rel: {error}") from None


def main() -> None:
    arguments = arguments_parser().parse_args()
    try:
        sigma_rels = check(arguments)
        place = open_place(arguments.run)
        entries = place.list()
        if not entries:
            raise MissingError(f"{place.describe()}: there is no run; check the address")
        if arguments.list:
            print_table(place, entries)
        else:
            chosen = choose(place, entries, arguments.what or "all", sigma_rels, arguments.nimg or "all")
            fetch(place, chosen, arguments.out, arguments.jobs or 8)
    except (ValueError, OSError) as error:
        exit_with("fetch.py", error, on_every_rank=False)


if __name__ == "__main__":
    from recipe.interrupts import interruptible

    with interruptible("fetch.py", "the same command goes on"):
        main()
