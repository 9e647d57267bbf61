"""What shards hold, for people: a table of their facts and a contact sheet."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from recipe.data.facts import DataFacts
from recipe.data.index import STATISTICS, facts_at, stored_file
from recipe.data.samples import MdsShards
from recipe.preparation.decoding import upright
from recipe.preparation.sources.items import PreparationError, Raw, spread
from recipe.storage.addresses import open_place
from recipe.storage.own_pictures import check_free, save_picture

COLUMNS, ROWS = 12, 8
CELL = 128  # largest width and height of a picture on the sheet, in pixels
DECODED_ROWS = 2  # of latents, whose decoding takes seconds each without a GPU
CLASSES_SHOWN = 10


def inspect(address: str, sheet: Path | None, vae: str | None = None, overwrite: bool = False) -> str:
    """Describe the data set at a local path or s3://bucket/prefix, and draw pictures spread over it.

    Args:
        sheet: PNG file for the pictures; None = `NAME-contact-sheet.png` in the current folder.
        vae: the autoencoder that decodes latents; None = their first channels are drawn as colours.
        overwrite: replace a file there that is no contact sheet.

    Raises:
        PreparationError, StorageError: no data set there, or one that cannot be read; an autoencoder that does not fit.
    """
    shards = MdsShards(open_place(address))
    facts = facts_at(shards.place)
    path = sheet or Path(f"{os.path.basename(os.path.abspath(address))}-contact-sheet.png")
    check_free(path, overwrite)
    lines = table(facts, shards)
    columns = [name for name, _ in _columns(shards)]
    if vae is not None and "mean" not in columns:
        raise PreparationError(f"--vae {vae}: {address} holds no latents; leave it out")
    if "image" in columns:
        save_picture(contact_sheet(_spread_over(shards, "image", ROWS)), path)
        lines.append(("contact sheet", str(path)))
    elif "mean" in columns:
        latents = _spread_over(shards, "mean", ROWS if vae is None else DECODED_ROWS)
        save_picture(contact_sheet(_coloured(latents) if vae is None else _decoded(latents, vae, address)), path)
        how = "latents in false colours; --vae NAME decodes them" if vae is None else f"decoded by {vae}"
        lines.append(("contact sheet", f"{path} ({how})"))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in lines)


def table(facts: DataFacts | None, shards: MdsShards) -> list[tuple[str, str]]:
    """Names and values to print."""
    files = [stored_file(shard) for shard in shards.shards]
    size = sum(file["bytes"] for file in files)
    lines = [
        ("place", shards.place.address),
        ("samples", str(len(shards))),
        ("shards", f"{len(files)}, {size / 1e6:.1f} MB, {size / max(1, len(shards)):.0f} bytes per sample"),
        ("columns", ", ".join(map(" ".join, _columns(shards)))),
    ]
    if facts is None:
        return [*lines, ("statistics", f"none: there is no {STATISTICS}")]
    for key, value in facts.to_json().items():
        if key in ("mean", "std"):
            lines.append((key, " ".join(f"{number:.4f}" for number in value)))
        elif key == "images_per_class":
            lines += _classes(value, facts.class_names)
        elif key != "class_names":
            lines.append((key, json.dumps(value) if isinstance(value, dict | list) else str(value)))
    return lines


def _columns(shards: MdsShards) -> list[tuple[str, str]]:
    if not shards.shards:
        return []
    return list(zip(shards.shards[0]["column_names"], shards.shards[0]["column_encodings"], strict=True))


def _classes(counts: dict[str, int], class_names: Sequence[str] | None) -> list[tuple[str, str]]:
    values = list(counts.values())
    lines = [("classes", f"{len(counts)}, with {min(values)} to {max(values)} images")] if values else []
    for label, count in list(counts.items())[:CLASSES_SHOWN]:
        known = class_names is not None and 0 <= int(label) < len(class_names)
        name = class_names[int(label)] if known and class_names else "no label" if label == "-1" else ""
        lines.append((f"  {label}", f"{count}  {name}".rstrip()))
    if len(counts) > CLASSES_SHOWN:
        lines.append(("  ...", f"{len(counts) - CLASSES_SHOWN} more"))
    return lines


def _spread_over(shards: MdsShards, column: str, rows: int) -> list[Any]:
    """A column of samples spread evenly over the data set, in its order."""
    return [shards.sample(index, only=[column])[column] for index in spread(len(shards), COLUMNS * rows)]


def _coloured(latents: list[NDArray[np.floating]]) -> list[NDArray[np.uint8]]:
    """Three channels, or one, of latents [C, H, W] as colours, each from -2 to 2 standard deviations."""
    values = np.stack(latents)[:, : 3 if len(latents[0]) >= 3 else 1].astype(np.float64)
    mean, std = (moment(values, axis=(0, 2, 3), keepdims=True) for moment in (np.mean, np.std))
    scaled = (values - mean) / np.maximum(std, 1e-12) / 2
    return list(np.clip(scaled * 127.5 + 127.5, 0, 255).astype(np.uint8))


def _decoded(latents: list[NDArray[np.floating]], vae: str, address: str) -> list[NDArray[np.uint8]]:
    import torch  # takes seconds to import, and most data are pixels

    from recipe.data.autoencoder import Vae, find_vae
    from recipe.preparation.moments import encoding_device

    files = find_vae(vae)
    files.check_latents(len(latents[0]), address)
    return list(Vae(files, encoding_device()).decode(torch.from_numpy(np.stack(latents)).float()).numpy())


def contact_sheet(raws: Sequence[Raw]) -> Image.Image:
    """Pictures row by row, none of them larger than CELL."""
    pictures = [upright(raw).convert("RGB") for raw in raws]
    cell = min(CELL, max(max(picture.size) for picture in pictures))
    rows = -(-len(pictures) // COLUMNS)
    sheet = np.full((rows * (cell + 2) - 2, COLUMNS * (cell + 2) - 2, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        picture.thumbnail((cell, cell))
        row, column = divmod(index, COLUMNS)
        top, left = row * (cell + 2), column * (cell + 2)
        sheet[top : top + picture.height, left : left + picture.width] = np.asarray(picture)
    return Image.fromarray(sheet)
