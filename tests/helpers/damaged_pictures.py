"""Picture files of every format that Pillow writes, and the same with some bytes changed; metadata that is odd."""

import io
import random
import struct
from collections.abc import Sequence

from PIL import Image

from helpers.picture_sets import noise, smooth

MODES = ("RGB", "L", "P", "RGBA", "1", "CMYK", "LA", "I;16")
Tag = tuple[int, int, int, bytes]
"""Number, type, count and value of an entry of EXIF."""


def every_format(size: tuple[int, int] = (24, 20)) -> list[tuple[str, bytes]]:
    """Format and file of a small picture in each format and mode that Pillow writes, with and without EXIF."""
    Image.init()
    picture, deep = smooth(*size, 0), Image.fromarray(noise(*size, 0, channels=1).astype("uint16"))
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x011A: 72.0, 0x0128: 2, 0x0131: "made up"})
    options = [{}, {"exif": exif}]
    files = []
    for kind in sorted(Image.SAVE):
        for mode in MODES:
            for given in [*options, {"compression": "tiff_lzw"}] if kind == "TIFF" else options:
                file = io.BytesIO()
                try:
                    (deep if mode == "I;16" else picture.convert(mode)).save(file, kind, **given)
                except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
                    continue  # not every format knows every mode
                if file.getvalue():
                    files.append((kind, file.getvalue()))
    return files


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The file with up to ten changes, mostly near its beginning: bytes set, cut off, put in, left out."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 10))):
        if not changed:
            break
        at, how = chance.randrange(len(changed)), chance.random()
        if how < 0.5:
            changed[min(len(changed) - 1, int(chance.expovariate(1 / 120)))] = chance.choice((0, 1, 127, 255))
        elif how < 0.7:
            changed[at] = chance.randrange(256)
        elif how < 0.8:
            del changed[at:]
        elif how < 0.9:
            changed[at:at] = chance.randbytes(chance.randrange(1, 9))
        else:
            del changed[at : at + chance.randrange(1, 9)]
    return bytes(changed)


def exif_of(tags: Sequence[Tag]) -> bytes:
    """A block of EXIF with these entries, right or wrong."""
    block = b"II" + struct.pack("<HLH", 42, 8, len(tags))
    values, start = b"", 8 + 2 + 12 * len(tags) + 4
    for number, kind, count, value in tags:
        place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<L", start + len(values))
        block += struct.pack("<HHL", number, kind, count) + place
        values += value if len(value) > 4 else b""
    return b"Exif\0\0" + block + struct.pack("<L", 0) + values
