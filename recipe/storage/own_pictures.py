"""Pictures that the commands write for people, and know again: no other file is lost where they go."""

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from recipe.storage.places import StorageError

FORMATS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
NOTE = ("Software", "edm2-recipe")  # of PNG files


def save_picture(image: Image.Image, path: Path) -> None:
    """Write a picture, whole or not at all; a PNG gets the note by which `is_own` knows it."""
    temporary = path.with_name(f".{secrets.token_hex(8)}{path.suffix}")
    note = None
    if path.suffix.lower() == ".png":
        note = PngInfo()
        note.add_text(*NOTE)
    try:
        image.save(temporary, pnginfo=note)  # other formats take no notice of it
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def is_own(path: Path) -> bool:
    """Whether a file is a PNG that `save_picture` wrote."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get(NOTE[0]) == NOTE[1]
    except Exception:  # whatever Pillow has against it
        return False


def check_free(paths: Iterable[Path], overwrite: bool) -> None:
    """Raises StorageError for the first place of a folder or, unless `overwrite`, of a file that is not our own."""
    for path in paths:
        if path.is_dir():
            raise StorageError(f"{path}: is a folder, where a picture is to go; name another place")
        if path.exists() and not overwrite and not is_own(path):
            raise StorageError(f"{path}: is there, and not from this command; name another place, or add --overwrite")
