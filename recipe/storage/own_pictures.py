"""Pictures that the commands write for people, and know again: no other file is lost where they go."""

import io
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from recipe.storage.addresses import is_taken, split_address
from recipe.storage.places import Place, StorageError

FORMATS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
NOTE = ("Software", "edm2-recipe")  # of PNG files
HEAD = 1024  # bytes of a PNG, within which all our notes are


def encoded(image: Image.Image, suffix: str, notes: Mapping[str, str] | None = None) -> bytes:
    """A picture as a file of the kind that the suffix names; a PNG gets the note by which `own_notes` knows it.

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


def save_picture(image: Image.Image, address: str | Path) -> None:
    """Write a picture, local or in object storage, whole or not at all, in the format of its suffix."""
    place, name = split_address(address)
    place.write(name, encoded(image, PurePosixPath(name).suffix))


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


def check_free(address: str | Path, overwrite: bool) -> None:
    """See that a picture may be written there, local or in object storage.

    Raises:
        StorageError: a folder; unless `overwrite`, a file that is not a PNG of our own; a place that cannot be read.
    """
    place, name = split_address(address)
    size = place.size(name)
    if size is None and is_taken(address):
        raise StorageError(f"{address}: is no file, and a picture is to go there; name another place")
    if size is not None and not overwrite and notes_at(place, name, size) is None:
        raise not_own(str(address))


def not_own(where: str) -> StorageError:
    """The refusal of a place at which a file of somebody else lies."""
    return StorageError(f"{where}: is there, and not from this command; name another place, or add --overwrite")
