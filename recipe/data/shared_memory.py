"""What streaming keeps in /dev/shm: what killed runs left there goes, what live runs on this machine use stays.

Streaming's own `clean_stale_shared_memory` deletes all of it, also what a run beside this one is using.
"""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path("/dev/shm")
NAME = re.compile(r"(\d{6})_(locals|barrier|next_epoch|cache_usage|shard_states|shard_access_times|resume|epoch_\w+)")
PATIENCE = 15.0  # seconds; a loader's worker notices within 5 that its rank was killed


def clear_stale(local: str) -> None:
    """Delete what no process uses any more; waits a moment for the claim of a dying run on the folder `local`."""
    deadline = time.monotonic() + PATIENCE
    claim = os.path.abspath(local).encode() + b"\0"
    while True:
        segments = list(_own_segments())
        live = _in_use()  # looked up last: a run that starts meanwhile maps what it has made within microseconds
        claimed = False
        for path in segments:
            prefix, kind = path.name.split("_", 1)
            if prefix not in live:
                path.unlink(missing_ok=True)
            elif kind == "locals":
                claimed |= claim in _content(path)
        if not claimed or time.monotonic() > deadline:
            return  # a claim that is still there belongs to a live run; streaming says so
        time.sleep(0.5)


def _own_segments() -> Iterator[Path]:
    for path in FOLDER.iterdir() if FOLDER.is_dir() else ():
        try:
            if NAME.fullmatch(path.name) and path.stat().st_uid == os.geteuid():
                yield path
        except FileNotFoundError:
            continue


def _in_use() -> set[str]:
    """Prefixes of the segments that some process has mapped."""
    found = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            text = maps.read_text(errors="replace")
        except OSError:  # it has ended, or is another user's, who uses segments of his own
            continue
        found |= {match[1] for match in re.finditer(rf"{FOLDER}/{NAME.pattern}$", text, re.MULTILINE)}
    return found


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
