"""Which reader a source needs."""

import os
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from recipe.preparation.digits import DEFAULT_RESOLUTION, DigitsSource
from recipe.preparation.files import FolderSource, TarSource, ZipSource
from recipe.preparation.items import PreparationError, Source
from recipe.preparation.mds import MdsSource
from recipe.storage.places import is_remote, open_place

if TYPE_CHECKING:
    from recipe.preparation.settings import Settings

DIGITS = "digits"
HUB = "hf:"


def open_source(source: str, settings: "Settings") -> Source:
    """The pictures that `source` names.

    It is a folder, a ZIP, a tar, MDS shards (local or s3://bucket/prefix), a Hugging Face data set (`hf:NAME`, or the
    folder of one), or `digits`.

    Raises:
        PreparationError: nothing of these, or one that cannot be read.
    """
    if source == DIGITS:
        _unused(settings, source)
        return DigitsSource(settings.resolution or DEFAULT_RESOLUTION)
    path = Path(source)
    is_hub = source.startswith(HUB) or any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
    if settings.split is not None and not is_hub:
        raise PreparationError(f"--split {settings.split}: only Hugging Face data sets have splits; leave it out")
    if is_hub:
        from recipe.preparation.hugging_face import HuggingFaceSource

        _unused(settings, source)
        return HuggingFaceSource(source.removeprefix(HUB), settings.split)
    if is_remote(source) or (path / "index.json").is_file():
        _unused(settings, source)
        return MdsSource(open_place(source))
    if path.is_dir():
        return FolderSource(path, settings.labels)
    if not path.is_file():
        raise PreparationError(f"{source}: there is no such folder or archive; check the path, or name {DIGITS}")
    if zipfile.is_zipfile(path):
        return ZipSource(path, settings.labels)
    if tarfile.is_tarfile(path):
        return TarSource(path, settings.labels)
    raise PreparationError(f"{source}: is neither a folder, nor a ZIP, nor a tar; name one of them")


def described(source: str) -> str:
    """What statistics tell of where the data came from: no path of this machine."""
    if source == DIGITS or is_remote(source) or source.startswith(HUB):
        return source
    return os.path.basename(os.path.abspath(source))


def _unused(settings: "Settings", source: str) -> None:
    if settings.labels is not None:
        raise PreparationError(f"--labels {settings.labels}: {source} has labels of its own; leave it out")
