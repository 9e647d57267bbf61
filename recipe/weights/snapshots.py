"""EMA snapshots: one `.safetensors` file per (nimg, sigma_rel) that alone rebuilds the network.

The header's metadata holds the network's arguments, the clock, the length of the average, the facts of the data and a
digest of every tensor. Nothing is pickled. A file is written in a temporary folder and moved to its place, so that a
listed snapshot is a whole one.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from recipe.command_line import UserError
from recipe.data.facts import DataFacts
from recipe.edm2.networks.kinds import KINDS, build_network
from recipe.edm2.networks.precond import Precond
from recipe.storage.addresses import is_remote, open_place, split_address
from recipe.storage.places import TEMPORARY
from recipe.weights.tensor_file import TensorFile, TensorFileError
from recipe.weights.tensor_writing import save_tensors

log = logging.getLogger(__name__)

FORMAT = 1
UNFINISHED = f"{TEMPORARY}snapshot-"  # such folders are never listed
METADATA_KEY = "edm2-recipe snapshot"
SNAPSHOT_NAME = re.compile(r"(?P<kind>snapshot|posthoc)-(?P<nimg>\d+)-(?P<sigma_rel>\d\.\d+)\.safetensors")


class SnapshotError(UserError):
    """A file that is not a usable snapshot; the message names it."""


class NotFiniteError(SnapshotError):
    """A whole snapshot of weights that are NaN or infinite."""


@dataclass(frozen=True)
class SnapshotInfo:
    """What a snapshot says of itself.

    Attributes:
        network: keyword arguments of `build_network`, without `dtype`.
        nimg: images seen.
        sigma_rel: relative length of the average; 0 = the weights themselves, which `convert.py` takes from elsewhere.
        dataset: the facts of the training data; of a file of another origin they may say nothing.
        extra: further entries in JSON, for example how a post-hoc average was made.
        config: kind of the network; a file that does not name one holds a network of config G.
        run: names the run that it is from, as no other run's; None if it is not known.
    """

    network: dict[str, Any]
    nimg: int
    sigma_rel: float
    dataset: DataFacts = field(default_factory=DataFacts)
    extra: dict[str, Any] = field(default_factory=dict)
    config: str = "G"
    run: str | None = None


def snapshot_name(nimg: int, sigma_rel: float, kind: str = "snapshot") -> str:
    """File name of a snapshot; `kind` is "snapshot" (tracked in training) or "posthoc" (reconstructed)."""
    return f"{kind}-{nimg:011d}-{sigma_rel:.3f}.safetensors"


@dataclass(frozen=True, order=True)
class SnapshotFile:
    """A snapshot as its file name describes it; `path` is a local one or an s3:// address."""

    nimg: int
    sigma_rel: float
    path: Path | str


def list_snapshots(folder: Path | str, kind: str = "snapshot") -> list[SnapshotFile]:
    """The snapshots in `folder`, by time and then length; other files, half-written ones among them, are not listed.

    Raises:
        StorageError: a folder in object storage that cannot be listed.
    """
    if is_remote(folder):
        paths = {entry.name: f"{folder}/{entry.name}" for entry in open_place(folder).list()}
    else:
        paths = {path.name: path for path in Path(folder).iterdir()} if Path(folder).is_dir() else {}
    found = [
        SnapshotFile(int(match["nimg"]), float(match["sigma_rel"]), path)
        for name, path in paths.items()
        if (match := SNAPSHOT_NAME.fullmatch(name)) and match["kind"] == kind
    ]
    return sorted(found, key=lambda snapshot: (snapshot.nimg, snapshot.sigma_rel))


def buffer_names(network: Mapping[str, Any], config: str = "G") -> set[str]:
    """Names of the tensors that are not averaged but copied, in float32, of a network of that kind and arguments."""
    with torch.device("meta"):
        return {name for name, _ in build_network(config, **network).named_buffers()}


def save_snapshot(path: Path, tensors: Mapping[str, Tensor], info: SnapshotInfo) -> None:
    """Write `tensors` (name -> CPU tensor, in the precision to store) and `info`, all or nothing."""
    header = {
        "format": FORMAT,
        "version": importlib.metadata.version("edm2-recipe"),
        **vars(info),
        "dataset": info.dataset.to_json(),
        "digests": {name: digest(tensor) for name, tensor in tensors.items()},
    }
    # safetensors writes several entries in random order; one entry makes equal snapshots equal files.
    text = json.dumps(header)
    metadata = {METADATA_KEY: f"{_sha256(text.encode())} {text}"}
    path.parent.mkdir(parents=True, exist_ok=True)
    # A folder, as the library has a temporary file of its own, of any name, beside the one that it is to write.
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=path.parent, ignore_cleanup_errors=True) as folder:
        temporary = Path(folder, path.name)
        save_tensors(temporary, tensors, metadata)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)


def remove_unfinished(folder: Path) -> None:
    """Delete what kills left of snapshots that were on their way into `folder`, where nobody may be writing now."""
    for path in folder.glob(f"{UNFINISHED}*"):
        log.warning("deleting %s: it was cut short", path)
        shutil.rmtree(path, ignore_errors=True)


def digest(tensor: Tensor) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the tensor's bytes."""
    return _sha256(tensor.contiguous().view(torch.uint8).numpy())


def _sha256(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


class _LocalTensors:
    """A local safetensors file with the interface of `TensorFile`."""

    def __init__(self, path: Path):
        self._file = safe_open(path, "pt").__enter__()
        self.metadata: dict[str, str] = self._file.metadata() or {}
        self.shapes = {name: tuple(self._file.get_slice(name).get_shape()) for name in self._file.keys()}  # noqa: SIM118

    def names(self) -> list[str]:
        return sorted(self.shapes)

    def read(self, names: Sequence[str]) -> list[Tensor]:
        return [self._file.get_tensor(name) for name in names]


class SnapshotReader:
    """Reads one snapshot tensor by tensor, checking each against its digest. Use as a context manager.

    Args:
        path: of a local file, or an s3:// address, of which only what is asked for is fetched.

    Raises:
        SnapshotError: if the file is missing, damaged, not a snapshot, or not to be read by this user.
        StorageError: if the object store cannot be used.
    """

    def __init__(self, path: Path | str):
        self.path = path

    def _open(self) -> "TensorFile | _LocalTensors":
        missing = f"{self.path}: no such snapshot; name a .safetensors file of a run's snapshots folder"
        if is_remote(self.path):
            place, name = split_address(self.path)
            if place.size(name) is None:
                raise SnapshotError(missing)
            return TensorFile(place, name)
        if not Path(self.path).is_file():
            raise SnapshotError(missing)
        if not os.access(self.path, os.R_OK):  # the library calls it missing
            raise SnapshotError(f"{self.path}: may not be read by this user; have its owner change its permissions")
        return _LocalTensors(Path(self.path))

    def __enter__(self) -> "SnapshotReader":
        try:
            self._file = self._open()
        except (SafetensorError, TensorFileError) as error:
            raise SnapshotError(f"{self.path}: is damaged or no snapshot ({error}); fetch or make it again") from None
        metadata = self._file.metadata
        if METADATA_KEY not in metadata:
            raise SnapshotError(f"{self.path}: is a safetensors file, but not a snapshot of this recipe")
        checksum, _, text = metadata[METADATA_KEY].partition(" ")
        if checksum != _sha256(text.encode()):
            raise SnapshotError(f"{self.path}: the checksum of its header does not match; fetch or make it again")
        self.identity = checksum  # of the header, and so of all that it says and of every tensor; not of the place
        header = {"config": "G", "run": None} | json.loads(text)
        if header["format"] != FORMAT:
            raise SnapshotError(
                f"{self.path}: has format {header['format']}; this version of the recipe reads {FORMAT}"
            )
        if header["config"] not in KINDS:
            raise SnapshotError(
                f"{self.path}: holds a network of config {header['config']}; this version of the recipe knows "
                f"{', '.join(KINDS)}: use a newer one"
            )
        self._digests = header["digests"]
        header["dataset"] = DataFacts.from_json(header["dataset"], f"{self.path}, dataset")
        self.info = SnapshotInfo(**{known.name: header[known.name] for known in dataclasses.fields(SnapshotInfo)})
        if self._digests.keys() != self._file.shapes.keys():
            raise SnapshotError(f"{self.path}: its header names other tensors than it holds; fetch or make it again")
        return self

    def __exit__(self, *exc) -> None:
        del self._file

    def names(self) -> list[str]:
        """All tensors, as they lie in the file where that is known."""
        return self._file.names()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self._file.shapes

    def read(self, name: str) -> Tensor:
        return self.read_some([name])[0]

    def read_some(self, names: Sequence[str]) -> list[Tensor]:
        """Several tensors; of a remote file in one request, if they follow each other in `names()`."""
        tensors = self._file.read(names)
        for name, tensor in zip(names, tensors, strict=True):
            if digest(tensor) != self._digests[name]:
                raise SnapshotError(f"{self.path}: the checksum of {name} does not match; fetch or make the file again")
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise NotFiniteError(
                    f"{self.path}: {name} holds numbers that are not finite: the run had diverged by then; use an "
                    "earlier snapshot"
                )
        return tensors

    def read_all(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        return {name: self.read(name) for name in (self.names() if names is None else names)}


def is_intact(path: Path, name: str) -> bool:
    """Whether a file, to be called `name`, is no snapshot or one in which every tensor passes its digest."""
    if not name.endswith(".safetensors"):
        return True
    try:
        with SnapshotReader(path) as reader:
            reader.read_all()
    except NotFiniteError:
        return True  # as it was made
    except ValueError:
        return False
    return True


def check_finite(path: Path) -> None:
    """Raises SnapshotError if a local file is a snapshot in which a number is NaN or infinite, or is damaged."""
    with SnapshotReader(path) as reader:
        for name in reader.names():
            reader.read(name)


def load_network(path: Path | str, dtype: torch.dtype = torch.float32) -> tuple[Precond, SnapshotInfo]:
    """Rebuild the network of a snapshot in eval mode on the CPU, its weights in float32 and activations in `dtype`.

    Raises:
        SnapshotError: if the file is missing, damaged or not a snapshot.
    """
    with SnapshotReader(path) as reader:
        return network_from(reader.info, reader.read_all(), dtype, path), reader.info


def network_from(info: SnapshotInfo, tensors: Mapping[str, Tensor], dtype: torch.dtype, path: Path | str) -> Precond:
    """The network of a snapshot's tensors, as `load_network` has it; `path` is what messages call them.

    Raises:
        SnapshotError: tensors that do not fit the network that `info` describes.
    """
    try:
        with torch.device("meta"):
            net = build_network(info.config, **info.network, dtype=dtype)
        net.to_empty(device="cpu")
        net.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise SnapshotError(f"{path}: its tensors do not fit its network ({reason}); make it again") from None
    return net.eval().requires_grad_(False)
