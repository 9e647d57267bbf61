"""Small sets of pictures as people have them, and independent readers of what became of them."""

import io
import json
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ORIENTATION = 0x0112  # EXIF tag


def noise(width: int, height: int, seed: int, channels: int = 3) -> NDArray[np.uint8]:
    """Pixels [H, W] or [H, W, C]."""
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(width: int, height: int, seed: int) -> Image.Image:
    """A picture with little detail, as photographs have."""
    return Image.fromarray(noise(4, 4, seed)).resize((width, height), Image.Resampling.BICUBIC)


def png(picture: Image.Image | NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, "PNG")
    return file.getvalue()


def tree(size: int = 8) -> dict[str, bytes]:
    """Files by name: three classes of square PNG files, whose order differs from that of writing."""
    names = ["cat/b.png", "cat/a.png", "dog/sub/1.png", "dog/0.png", "ape/only.png"]
    return {name: png(noise(size, size, seed)) for seed, name in enumerate(names)}


TREE_LABELS = {"ape/only.png": 0, "cat/a.png": 1, "cat/b.png": 1, "dog/0.png": 2, "dog/sub/1.png": 2}
"""Class ids of `tree` in the order in which they are to be stored."""


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def write_zip(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, files: dict[str, bytes], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def pixels(data: bytes) -> NDArray[np.uint8]:
    """[C, H, W] of an RGB image file, by Pillow alone."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1)


def stored(
    folder: Path, resolution: int, channels: int = 3, label_dim: int = 1000
) -> tuple[NDArray[np.uint8], list[int]]:
    """All pictures [N, C, H, W] and labels, as the training loader reads them."""
    from streaming.base.util import clean_stale_shared_memory

    from recipe.data.dataset import ImageDataset

    clean_stale_shared_memory()
    dataset = ImageDataset(
        img_resolution=resolution,
        img_channels=channels,
        label_dim=label_dim,
        local=str(folder),
        batch_size=1,
        shuffle=False,
    )
    samples = [dataset[index] for index in range(len(dataset))]
    return np.stack([sample["image"].numpy() for sample in samples]), [int(sample["label"]) for sample in samples]


def contents(folder: Path) -> dict[str, bytes]:
    """Files of a folder by name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def messy_folder(folder: Path) -> dict[str, str]:
    """A folder as real life makes them; returns the reason for each file that cannot be used."""
    classes = {"Äpfel 🍎": 12, "birds": 11, "cars,and more": 10, "one": 1}
    for number, (name, count) in enumerate(classes.items()):
        for index in range(count):
            picture = smooth(20 + 7 * index, 60 - 3 * index, 100 * number + index)
            write_folder(folder, {f"{name}/bild é {index}.png": png(picture)})
    odd = folder / "birds"
    picture = smooth(40, 24, 7)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    picture.save(odd / "turned.jpg", exif=exif)
    picture.convert("P").save(odd / "palette.gif")
    picture.convert("CMYK").save(odd / "print.jpg")
    picture.convert("L").save(odd / "grey.bmp")
    picture.convert("1").save(odd / "bits.png")
    faded = picture.convert("RGBA")
    faded.putalpha(Image.linear_gradient("L").resize(picture.size))
    faded.save(odd / "faded.webp", lossless=True)
    faded.convert("LA").save(odd / "grey faded.png")
    Image.fromarray(np.linspace(0, 65535, 900).reshape(30, 30).astype(np.uint16)).save(odd / "deep.png")
    whole = png(smooth(50, 50, 1))
    (odd / ".hidden").write_bytes(b"not looked at")
    os.symlink(odd / "turned.jpg", folder / "one" / "link.jpg")
    write_folder(
        folder, {"birds/cut.png": whole[: len(whole) // 2], "birds/empty.jpg": b"", "birds/notes.txt": b"hello"}
    )
    os.symlink("nowhere", odd / "broken link.png")
    return {
        "birds/broken link.png": "cannot be read",
        "birds/cut.png": "is a damaged image",
        "birds/empty.jpg": "is an empty file",
        "birds/notes.txt": "is not an image",
    }


def official_zip(path: Path, size: int = 16, labelled: bool = True) -> Path:
    """A ZIP as the official tool writes it: numbered PNG files, stored, and `dataset.json` last."""
    names = [f"{index // 1000:05d}/img{index:08d}.png" for index in range(12)]
    files = {name: png(noise(size, size, 50 + index)) for index, name in enumerate(names)}
    labels = [[name, (7 * index) % 5] for index, name in enumerate(names)] if labelled else None
    return write_zip(path, files | {"dataset.json": json.dumps({"labels": labels}).encode()})
