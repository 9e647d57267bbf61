"""Pictures that the commands write for people, and know again: no other file is lost where they go."""

import io
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from recipe.storage.places import Place, StorageError

FORMATS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
NOTE = ("Software", "edm2-recipe")  # of PNG files
HEAD = 1024  # bytes of a PNG, within which all our notes are


def encoded(image: Image.Image, suffix: str, notes: Mapping[str, str] | None = None) -> bytes:
    """A picture as a file of the kind that the suffix names; a PNG gets the note by which `is_own` knows it.

    Args:
        image: the picture.
        suffix: one of FORMATS.
        notes: further ones of a PNG, name -> text, all together at most a few hundred letters.
    """
    note, buffer = None, io.BytesIO()
    if suffix.lower() == ".png":
        note = PngInfo()
        for name, text in {NOTE[0]: NOTE[1], **(notes or {})}.items():
            note.add_text(name, text)
    image.save(buffer, Image.registered_extensions()[suffix.lower()], pnginfo=note)  # others take no notice of it
    return buffer.getvalue()


def save_picture(image: Image.Image, path: Path) -> None:
    """Write a picture, whole or not at all, in the format of its suffix."""
    temporary = path.with_name(f".{secrets.token_hex(8)}{path.suffix}")
    try:
        temporary.write_bytes(encoded(image, path.suffix))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def own_notes(head: bytes) -> dict[str, str] | None:
    """The notes of a PNG that this project wrote, from its first HEAD bytes; None if it is another file."""
    try:
        with Image.open(io.BytesIO(head), formats=["PNG"]) as image:
            notes = {str(name): text for name, text in image.info.items() if isinstance(text, str)}
    except Exception:  # whatever Pillow has against it
        return None
    return notes if notes.get(NOTE[0]) == NOTE[1] else None


def notes_at(place: Place, name: str, size: int) -> dict[str, str] | None:
    """`own_notes` of a file of `size` bytes in a place."""
    return own_notes(place.read(name, 0, min(size, HEAD)))


def is_own(path: Path) -> bool:
    """Whether a file is a PNG that this project wrote."""
    try:
        with open(path, "rb") as file:
            return own_notes(file.read(HEAD)) is not None
    except OSError:
        return False


def check_free(paths: Iterable[Path], overwrite: bool) -> None:
    """Raises StorageError for the first place of a folder or, unless `overwrite`, of a file that is not our own."""
    for path in paths:
        if path.is_dir():
            raise StorageError(f"{path}: is a folder, where a picture is to go; name another place")
        if path.exists() and not overwrite and not is_own(path):
            raise not_own(str(path))


def not_own(where: str) -> StorageError:
    """The refusal of a place at which a file of somebody else lies."""
    return StorageError(f"{where}: is there, and not from this command; name another place, or add --overwrite")
