"""Keeps a folder of Composer's checkpoints usable after a kill at any moment."""

import logging
import os
import re
import zipfile
from pathlib import Path

log = logging.getLogger(__name__)

LATEST = "latest-rank0.pt"
_NAME = re.compile(r"ba(\d+)-rank0\.pt")


def clean_up_checkpoints(folder: Path) -> Path | None:
    """Delete checkpoints that were cut short, and point `latest` at the newest whole one, which is returned.

    Composer writes a checkpoint under its final name and then replaces the link `latest-rank0.pt`. A kill during the
    write leaves a torn file; a kill between removing and making the link leaves no link and would restart the run.
    """
    if not folder.is_dir():
        return None
    found = sorted((int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)))
    whole = []
    for _, path in found:
        if zipfile.is_zipfile(path):  # torch writes the zip's directory last
            whole.append(path)
        else:
            log.warning("deleting %s: it was cut short", path)
            path.unlink()
    if not whole:
        return None
    temporary = folder / f".{LATEST}.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(whole[-1].name)
    os.replace(temporary, folder / LATEST)
    return whole[-1]
