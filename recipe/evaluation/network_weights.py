"""The published weights of feature networks: fetched once, or from a folder, and checked before they are read."""

import contextlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipe.command_line import rank
from recipe.evaluation.feature_set import EvaluationError
from recipe.progress import progress
from recipe.storage.files import file_sha256
from recipe.storage.local import LocalPlace, locked

TIMEOUT = 60  # seconds without a byte
BLOCK = 1 << 20
ANY = "any"


@dataclass(frozen=True)
class PublishedWeights:
    """A file of weights.

    Attributes:
        file: its name.
        url: where its authors publish it.
        sha256: what is known of its digest, the first digits or all; "" = nothing.
    """

    file: str
    url: str
    sha256: str


@dataclass(frozen=True)
class WeightsChoice:
    """Where weights come from.

    Attributes:
        folder: that holds the files; None = torch's cache, into which they are fetched.
        accept: SHA-256 of a file that is to be taken although its digest is not known here; "any" = whatever it is.
    """

    folder: Path | None = None
    accept: str | None = None


def load_weights(published: PublishedWeights, choice: WeightsChoice, features: str) -> tuple[Mapping[str, Tensor], str]:
    """The tensors of a file, unpickled with restriction, and its SHA-256.

    Args:
        features: the network, for messages.

    Raises:
        EvaluationError: it is not there and cannot be fetched, its digest is another one, or it holds no tensors.
    """
    path = _path(published, choice, features)
    digest = file_sha256(path)
    _check(published, choice, path, digest)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        tensors = all(isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items())
    except Exception as error:  # whatever a damaged file leads to
        reason = " ".join(str(error).split())[:100]
        raise EvaluationError(f"{path}: cannot be read as weights ({type(error).__name__}: {reason})") from None
    if not tensors:
        raise EvaluationError(f"{path}: holds something else than tensors by name; get it again from {published.url}")
    return found, digest


def _path(published: PublishedWeights, choice: WeightsChoice, features: str) -> Path:
    """The file, fetched if it has to be. Several ranks of a machine fetch it once."""
    if choice.folder is not None:
        path = choice.folder / published.file
        if not path.is_file():
            raise EvaluationError(
                f"--weights {choice.folder}: holds no {published.file}; get it from {published.url} and put it there"
            )
        return path
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / published.file
    if path.is_file():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            if not path.is_file():
                LocalPlace(folder).make(published.file, lambda temporary: _fetch(published, temporary))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise EvaluationError(
            f"--features {features}: its weights are not at {path} and cannot be fetched "
            f"({' '.join(str(error).split())[:200]}); get {published.url} elsewhere, put the file there, or name its "
            "folder by --weights"
        ) from None
    return path


def _fetch(published: PublishedWeights, path: Path) -> None:
    with _answer(published.url) as answer, open(path, "wb") as file:
        length = answer.headers.get("Content-Length")
        total = int(length) if length is not None and length.isdecimal() else None
        with progress(total, published.file, "B", shown=rank() == 0, unit_scale=True) as bar:
            while block := answer.read(BLOCK):
                file.write(block)
                bar.update(len(block))
        if total not in (None, file.tell()):
            raise ConnectionError(f"the connection ended after {file.tell()} of {total} bytes")


@contextlib.contextmanager
def _answer(url: str) -> Iterator[Any]:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            yield answer
    except urllib.error.HTTPError as error:
        error.close()  # it keeps its connection open
        raise


def _check(published: PublishedWeights, choice: WeightsChoice, path: Path, digest: str) -> None:
    if choice.accept in (ANY, digest):
        return
    known = published.sha256
    if choice.accept is not None:
        raise EvaluationError(f"--accept-weights {choice.accept}: {path} has the SHA-256 {digest}")
    if known and digest.startswith(known):
        return
    reason = f"not {known}..." if known else "which is not known here"
    fix = "get it again" if known else "compare it with one that you trust"
    raise EvaluationError(
        f"{path}: has the SHA-256 {digest}, {reason}; {fix}, or take it as it is by --accept-weights {digest}"
    )
