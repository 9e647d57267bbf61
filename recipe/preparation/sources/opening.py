"""Which reader a source needs."""

import lzma
import os
import tarfile
import zipfile
import zlib
from pathlib import Path

from recipe.preparation.sources.archives import TarSource, ZipSource
from recipe.preparation.sources.cifar import CifarSource, layout_of
from recipe.preparation.sources.digits import DEFAULT_RESOLUTION, DigitsSource
from recipe.preparation.sources.folder import FolderSource
from recipe.preparation.sources.items import PreparationError, Source
from recipe.preparation.sources.mds import MdsSource
from recipe.preparation.sources.tars import tars_of_braces, tars_of_folder
from recipe.storage.addresses import is_remote, open_place

DIGITS = "digits"
HUB = "hf:"


def open_source(
    source: str, resolution: int | None = None, labels: Path | None = None, split: str | None = None
) -> Source:
    """The pictures that `source` names.

    It is a folder, a ZIP, a tar, several tars (a folder of them, or a name with braces), MDS shards (local or
    s3://bucket/prefix), a Hugging Face data set (`hf:NAME`, or the folder of one), CIFAR as it is distributed, or
    `digits`.

    Args:
        resolution: of the digits; None = 32.
        labels: file of class ids, for folders and archives; None = what the source itself says.
        split: of a Hugging Face data set (None = the only one) or CIFAR (None = train).

    Raises:
        PreparationError: nothing of these, or one that cannot be read.
    """
    if source == DIGITS:
        _refuse(labels, source)
        return DigitsSource(resolution or DEFAULT_RESOLUTION)
    path = Path(source)
    is_hub = source.startswith(HUB) or any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
    cifar = None if is_hub or is_remote(source) or not path.exists() else layout_of(path)
    if split is not None and not is_hub and cifar is None:
        raise PreparationError(f"--split {split}: only Hugging Face data sets and CIFAR have splits; leave it out")
    if is_hub:
        from recipe.preparation.sources.hugging_face import HuggingFaceSource

        _refuse(labels, source)
        return HuggingFaceSource(source.removeprefix(HUB), split)
    if cifar is not None:
        _refuse(labels, source)
        return CifarSource(path, cifar, split)
    tars = None if is_remote(source) else tars_of_braces(source)
    if tars is not None:
        return TarSource(tars, labels, source)
    of_folder = tars_of_folder(path) if path.is_dir() else None
    if of_folder is not None:
        opened = TarSource(of_folder[0], labels, source)
        opened.remarks = [*filter(None, of_folder[1:]), *opened.remarks]
        return opened
    if is_remote(source) or (path / "index.json").is_file():
        _refuse(labels, source)
        return MdsSource(open_place(source))
    if path.is_dir():
        return FolderSource(path, labels)
    if not path.is_file():
        raise PreparationError(f"{source}: there is no such folder or archive; check the path, or name {DIGITS}")
    if zipfile.is_zipfile(path):
        return ZipSource(path, labels)
    if _is_tar(path):
        return TarSource(path, labels)
    raise PreparationError(f"{source}: is neither a folder, nor a ZIP, nor a tar; name one of them")


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:  # it is compressed, and damaged in its beginning
        raise PreparationError(f"{path}: is not a whole tar file ({error}); copy it again") from None


def described(source: str) -> str:
    """What statistics say of where the data came from: no path of this machine."""
    if source == DIGITS or is_remote(source) or source.startswith(HUB):
        return source
    return os.path.basename(os.path.abspath(source))


def _refuse(labels: Path | None, source: str) -> None:
    if labels is not None:
        raise PreparationError(f"--labels {labels}: {source} has labels of its own; leave it out")
