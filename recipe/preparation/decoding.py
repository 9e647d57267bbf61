"""Opening a picture and turning it upright, and one reason of one line for whatever goes wrong in it."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from recipe.command_line import UserError
from recipe.preparation.metadata import orientation_in, without_metadata
from recipe.preparation.sources.items import ItemError, Raw, Source, shown

ORIENTATION = 0x0112  # EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture with an orientation of EXIF upright."""


@contextmanager
def one_reason(what: str = "is a damaged image") -> Iterator[None]:
    """Any error inside becomes an ItemError of one line, whatever its type: decoders raise all of them.

    Errors that the user can put right, such as a place that does not answer, pass: they are not the picture's.

    Args:
        what: begins the reason.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # metadata that Pillow finds odd
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except (ItemError, UserError):
            raise
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise ItemError(
                f"has more than Pillow's limit of {Image.MAX_IMAGE_PIXELS} pixels (a decompression bomb?); reduce it "
                "first"
            ) from None
        except MemoryError:
            raise ItemError(f"{what} (it needs more memory than there is)") from None
        except Exception as error:
            raise ItemError(f"{what} ({_reason(error)})") from None


def read_item(source: Source, index: int) -> Raw:
    """An item of a source. Raises ItemError whatever the reason is that it cannot be read, but for UserError."""
    with one_reason("cannot be read"):
        return source.read(index)


def upright(raw: Raw) -> Image.Image:
    """The picture, decoded and turned as its EXIF orientation says; the first frame of several. Raises ItemError."""
    if isinstance(raw, np.ndarray):
        return _from_array(raw)
    with one_reason():
        picture, orientation = _opened(raw) if isinstance(raw, bytes) else (raw, None)
        picture.load()  # first: of some kinds (TIFF) Pillow turns the pictures itself
        turn = TURNS.get(orientation or _orientation(picture))
        return picture if turn is None else picture.transpose(turn)


def _opened(data: bytes) -> tuple[Image.Image, int | None]:
    """The picture in a file, and its orientation if that is known already."""
    try:
        return Image.open(io.BytesIO(data)), None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise
    except Exception as error:
        # Pillow reads some of the metadata as it opens a file, and gives up over what it does not understand there.
        bare = without_metadata(data)
        if bare is not None:
            try:
                return Image.open(io.BytesIO(bare)), orientation_in(data) or 1
            except (Image.DecompressionBombWarning, Image.DecompressionBombError):
                raise
            except Exception:
                pass  # the first error says more
        if isinstance(error, UnidentifiedImageError):
            raise ItemError("is not an image" if data else "is an empty file") from None
        raise


def _orientation(picture: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where nothing that can be understood says another."""
    try:
        found = picture.getexif().get(ORIENTATION)
    except Exception:  # of a parser over damaged metadata
        exif = picture.info.get("exif")
        found = orientation_in(exif) if isinstance(exif, bytes) else None
    while isinstance(found, tuple | list | bytes) and len(found) == 1:  # of another type than EXIF demands
        found = found[0]
    return next((value for value in TURNS if found in (value, str(value))), 1)


def _from_array(array: NDArray[np.uint8]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise ItemError(f"is an array of {array.dtype} with shape {list(array.shape)}, not uint8 pixels")
    if array.ndim == 3 and array.shape[0] in (1, 3):
        array = array[0] if len(array) == 1 else array.transpose(1, 2, 0)
    elif array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim == 3 and array.shape[2] not in (3, 4):
        raise ItemError(f"is an array of shape {list(array.shape)}, which is neither [C, H, W] nor [H, W, C]")
    return Image.fromarray(np.ascontiguousarray(array))


def _reason(error: Exception) -> str:
    text = shown(" ".join(str(error).split()))
    name = type(error).__name__
    return (text if " " in text else f"{name}: {text}" if text else name)[:200]
