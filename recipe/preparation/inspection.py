"""What shards hold, for people: a table of their statistics and a contact sheet."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from recipe.preparation.items import PreparationError
from recipe.preparation.mds import MdsShards
from recipe.preparation.outputs import STATISTICS, stored_file
from recipe.preparation.pictures import upright
from recipe.storage.places import MissingError, open_place

COLUMNS, ROWS = 12, 8
CELL = 128  # largest width and height of a picture on the sheet, in pixels
CLASSES_SHOWN = 10


def inspect(address: str, sheet: Path | None) -> str:
    """Describe the data set at a local path or s3://bucket/prefix, and draw pictures spread over it.

    Args:
        sheet: PNG file for the pictures; None = `NAME-contact-sheet.png` in the current folder.

    Raises:
        PreparationError, StorageError: no data set there, or one that cannot be read.
    """
    shards = MdsShards(open_place(address))
    try:
        facts = json.loads(shards.place.read(STATISTICS))
    except MissingError:
        facts = {}
    except ValueError:
        raise PreparationError(f"{address}/{STATISTICS}: is not valid JSON; prepare the data again") from None
    path = sheet or Path(f"{os.path.basename(os.path.abspath(address))}-contact-sheet.png")
    lines = table(facts, shards)
    if len(shards) and "image" in shards.shards[0]["column_names"]:
        contact_sheet(shards).save(path)
        lines.append(("contact sheet", str(path)))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in lines)


def table(facts: dict[str, Any], shards: MdsShards) -> list[tuple[str, str]]:
    """Names and values to print."""
    files = [stored_file(shard) for shard in shards.shards]
    size = sum(file["bytes"] for file in files)
    lines = [
        ("place", shards.place.address),
        ("samples", str(len(shards))),
        ("shards", f"{len(files)}, {size / 1e6:.1f} MB, {size / max(1, len(shards)):.0f} bytes per sample"),
        ("columns", ", ".join(map(" ".join, _columns(shards)))),
    ]
    if not facts:
        return [*lines, ("statistics", f"none: there is no {STATISTICS}")]
    for key, value in facts.items():
        if key in ("mean", "std"):
            lines.append((key, " ".join(f"{number:.4f}" for number in value)))
        elif key == "images_per_class":
            lines += _classes(value, facts.get("class_names"))
        elif key != "class_names":
            lines.append((key, json.dumps(value) if isinstance(value, dict | list) else str(value)))
    return lines


def _columns(shards: MdsShards) -> list[tuple[str, str]]:
    if not shards.shards:
        return []
    return list(zip(shards.shards[0]["column_names"], shards.shards[0]["column_encodings"], strict=True))


def _classes(counts: dict[str, int], class_names: list[str] | None) -> list[tuple[str, str]]:
    values = list(counts.values())
    lines = [("classes", f"{len(counts)}, with {min(values)} to {max(values)} images")] if values else []
    for label, count in list(counts.items())[:CLASSES_SHOWN]:
        known = class_names is not None and 0 <= int(label) < len(class_names)
        name = class_names[int(label)] if known and class_names else "no label" if label == "-1" else ""
        lines.append((f"  {label}", f"{count}  {name}".rstrip()))
    if len(counts) > CLASSES_SHOWN:
        lines.append(("  ...", f"{len(counts) - CLASSES_SHOWN} more"))
    return lines


def contact_sheet(shards: MdsShards) -> Image.Image:
    """Pictures spread evenly over the data set, in its order, row by row."""
    number = min(len(shards), COLUMNS * ROWS)
    pictures = [
        upright(shards.sample(index * len(shards) // number)["image"]).convert("RGB") for index in range(number)
    ]
    cell = min(CELL, max(max(picture.size) for picture in pictures))
    rows = -(-number // COLUMNS)
    sheet = np.full((rows * (cell + 2) - 2, COLUMNS * (cell + 2) - 2, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        picture.thumbnail((cell, cell))
        row, column = divmod(index, COLUMNS)
        top, left = row * (cell + 2), column * (cell + 2)
        sheet[top : top + picture.height, left : left + picture.width] = np.asarray(picture)
    return Image.fromarray(sheet)
