"""How far a long task has come: a bar on a terminal, a line each minute in a log file, so that no wait is silent."""

import sys

from tqdm import tqdm

LOG_SECONDS = 60.0
LINE = "{desc}: {n_fmt}/{total_fmt}, {rate_fmt}, {remaining} left"
UP = "\x1b[A"  # moves the cursor, for bars below one another


def progress(total: int | None, what: str, unit: str, *, shown: bool = True, **options: object) -> tqdm:
    """A bar to be used as tqdm's, on standard error.

    Args:
        total: how much there is to do; None = not known.
        what: is being done.
        unit: of which there are `total`.
        shown: False = say nothing: another rank does.
        options: more of tqdm's.
    """
    stream = sys.stderr
    if shown and not stream.isatty():
        options |= {"file": _Lines(), "bar_format": LINE, "delay": LOG_SECONDS}
        options |= {"mininterval": LOG_SECONDS, "maxinterval": LOG_SECONDS}
    return tqdm(total=total, desc=what, unit=unit, disable=not shown, **options)  # pyright: ignore


class _Lines:
    """Standard error, where each bar that tqdm draws in place becomes a line of its own."""

    def write(self, text: str) -> None:
        line = text.replace(UP, "").strip()
        if line:
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        sys.stderr.flush()
