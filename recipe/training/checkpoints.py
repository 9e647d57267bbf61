"""Keeps a folder of Composer's checkpoints usable after a kill at any moment."""

import logging
import re
import zipfile
from pathlib import Path

log = logging.getLogger(__name__)

_NAME = re.compile(r"ba(\d+)-rank0\.pt")


def clean_up_checkpoints(folder: Path) -> Path | None:
    """Delete the checkpoints in `folder` that were cut short and return the newest whole one, None if there is none.

    Composer writes a checkpoint under its final name, so a kill during the write leaves a torn file there.
    """
    if not folder.is_dir():
        return None
    found = sorted((int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)))
    latest = None
    for _, path in found:
        if zipfile.is_zipfile(path):  # torch writes the zip's directory last
            latest = path
        else:
            log.warning("deleting %s: it was cut short", path)
            path.unlink()
    return latest
