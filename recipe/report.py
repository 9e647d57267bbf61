"""Make one HTML page of a run: configuration, curves, samples over time, sweeps, data, snapshots.

    python recipe/report.py RUN [--out report.html]
    python recipe/report.py s3://bucket/runs/edm2 --out edm2.html --sweep s3://bucket/sweeps/edm2

RUN is a run's folder, local or in S3, finished or not. The page is one file that needs no other and no network. Sweeps
that recipe/sweep.py left in the run's folder are in it, and those that --sweep names. More: docs/sweeps-and-reports.md.
"""

if __name__ == "__main__":  # before the imports that take seconds
    from recipe.interrupts import end_at_once
    from recipe.lean_imports import import_less

    end_at_once("report.py")
    import_less()

import recipe  # noqa: F401, sets up threads, before torch is loaded

# isort: split

import argparse
from pathlib import Path

from recipe.command_line import exit_with
from recipe.command_options import OptionError, Options, address, check_file, real_number
from recipe.reporting.contents import read_contents
from recipe.reporting.page import page
from recipe.storage.addresses import is_remote, split_address

MARK = b'<meta name="generator" content="edm2-recipe report">'
HEAD = 4096  # bytes of a page, within which the mark is


def arguments_parser() -> Options:
    parser = Options("report.py", "Make one HTML page of a run.")
    add = parser.add_argument
    add("run", type=address("RUN"), help="folder of the run, local or s3://bucket/folder")
    out = "the page, local or s3:// (default: RUN/report.html)"
    add("--out", type=address("--out"), metavar="FILE.html", help=out)
    sweep = "a sweep's folder, beside those in RUN/sweeps"
    add("--sweep", type=address("--sweep"), metavar="PLACE", help=sweep)
    limit = "MB of all grids of samples together; if there are more, some times are left out (default 12)"
    add("--grids-mb", type=real_number("--grids-mb", least=0), default=12.0, metavar="MB", help=limit)
    add("--overwrite", action="store_true", help="replace a file at --out that is no page of this command")
    return parser


def check_out(out: str, overwrite: bool) -> None:
    """Raises OptionError, StorageError if the page cannot go there."""
    if not is_remote(out):
        check_file(Path(out), "--out", [".html", ".htm"])
    elif not out.lower().endswith((".html", ".htm")):
        raise OptionError(f"--out {out}: must end with the kind of file, .html; write {out}.html")
    place, name = split_address(out)
    size = place.size(name)
    if size is not None and not overwrite and MARK not in place.read(name, 0, min(size, HEAD)):
        raise OptionError(f"--out {out}: is there, and not from this command; name another place, or add --overwrite")


def report(arguments: argparse.Namespace) -> None:
    """Gather what the run holds and write its page. Raises ValueError, OSError."""
    run = arguments.run.rstrip("/") or "/"
    if not is_remote(run) and not Path(run).is_dir():
        raise OptionError(f"{run}: no such folder; name the folder of a run, for example runs/edm2")
    out = arguments.out or f"{run}/report.html"
    check_out(out, arguments.overwrite)
    sweeps = [] if arguments.sweep is None else [arguments.sweep]
    contents = read_contents(run, sweeps, int(arguments.grids_mb * 2**20))
    text = page(contents).encode()
    place, name = split_address(out)
    place.write(name, text)
    curves, grids = f"{len(contents.curves)} curves", f"{len(contents.grids)} grids"
    print(f"{out}: {curves}, {grids}, {len(contents.sweeps)} sweeps, {len(text) / 1e6:.1f} MB; open it in a browser")
    for remark in (remark for remarks in contents.remarks.values() for remark in remarks):
        print(f"  {remark}")


def main() -> None:
    arguments = arguments_parser().parse_args()
    try:
        report(arguments)
    except (ValueError, OSError) as error:
        exit_with("report.py", error, on_every_rank=False)


if __name__ == "__main__":
    from recipe.interrupts import interruptible

    with interruptible("report.py", "nothing was written"):
        main()
