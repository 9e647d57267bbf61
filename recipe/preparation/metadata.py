"""The little of a file's metadata that is needed where Pillow cannot read it: the orientation, found byte by byte."""

import struct

EXIF = b"Exif\0\0"
ORIENTATION = 0x0112
SHORT, LONG, BYTE = 3, 4, 1  # types of EXIF's numbers
JPEG = b"\xff\xd8"
START_OF_SCAN = 0xDA
KEPT = (0xE0, 0xEE)  # JFIF, and Adobe's, which says how colours are stored
WIDTHS = {SHORT: "H", LONG: "L", BYTE: "B"}


def orientation_in(data: bytes) -> int | None:
    """The orientation that EXIF in `data` says, a block of EXIF or a JPEG file; None if there is none to be found."""
    if data.startswith(JPEG):
        blocks = [content for marker, content in _segments(data)[0] if marker == 0xE1 and content.startswith(EXIF)]
        return next(filter(None, map(orientation_in, blocks)), None)
    data = data.removeprefix(EXIF)
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    try:
        if order is None:
            return None
        (start,) = struct.unpack_from(order + "L", data, 4)
        (number,) = struct.unpack_from(order + "H", data, start)
        for index in range(number):
            tag, kind, count = struct.unpack_from(order + "HHL", data, start + 2 + 12 * index)
            if tag == ORIENTATION and count == 1 and kind in WIDTHS:
                (value,) = struct.unpack_from(order + WIDTHS[kind], data, start + 10 + 12 * index)
                return value if 1 <= value <= 8 else None
    except struct.error:  # it ends too early
        return None
    return None


def without_metadata(data: bytes) -> bytes | None:
    """A JPEG file without what programs have noted in it; None for other files, and for those without any."""
    if not data.startswith(JPEG):
        return None
    segments, rest = _segments(data)
    kept = [(marker, content) for marker, content in segments if not 0xE0 <= marker <= 0xEF or marker in KEPT]
    if len(kept) == len(segments):
        return None
    parts = [b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content for marker, content in kept]
    return JPEG + b"".join(parts) + data[rest:]


def _segments(data: bytes) -> tuple[list[tuple[int, bytes]], int]:
    """(marker, content) of the segments of a JPEG file before its pixels, and where what is not read begins."""
    segments = []
    at = len(JPEG)
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # filling
            at += 1
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker == START_OF_SCAN or length < 2 or at + 2 + length > len(data):
            break
        segments.append((marker, data[at + 4 : at + 2 + length]))
        at += 2 + length
    return segments, at
