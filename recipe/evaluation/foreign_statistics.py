"""Statistics that others publish: EDM2's `.pkl`, and `.npz` files with `mu` and `sigma` as EDM, ADM and JiT have them.

They are read as data: a pickle names nothing but NumPy's arrays, and none of what it names is called. They do not say
of which pictures, weights and resizing they are.
"""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipe.evaluation.feature_set import EvaluationError, FeatureSet
from recipe.weights.inert_pickles import Name, PickleError, Record, one_line, read_pickle

WIDTHS = {"inception": 2048, "dinov2": 1024, "dinov2-pil": 1024}
ENTRIES = {"inception": "fid", "dinov2": "fd_dinov2", "dinov2-pil": "fd_dinov2"}
"""What EDM2's files call the statistics of a network's features."""
LARGEST = 1 << 16  # features
ASYMMETRY = 1e-6  # relative to the largest entry; files hold covariances up to rounding

_ARRAY = {f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")}
_BUFFER = {f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")}
_NAMES = _ARRAY | _BUFFER | {"numpy.ndarray", "numpy.dtype", "_codecs.encode"}
_KINDS = {"f8": np.dtype("<f8"), "f4": np.dtype("<f4")}


def read_pickled(data: bytes, features: str, shown: str) -> FeatureSet:
    """The statistics of one network in a pickle like EDM2's, {"fid": {"mu": ..., "sigma": ...}, "fd_dinov2": ...}.

    Args:
        features: name of the network.
        shown: the file, for messages.

    Raises:
        EvaluationError: it is no such pickle, or has no statistics of this network.
    """
    try:
        top = read_pickle(io.BytesIO(data), _NAMES)
        if not isinstance(top, dict) or not all(isinstance(entry, dict) for entry in top.values()):
            raise PickleError("not a dictionary of dictionaries")
        entry = ENTRIES.get(features)
        if entry not in top:
            known = ", ".join(one_line(name) for name in top)
            raise EvaluationError(f"{shown}: holds statistics {known}, and none of the features {features}")
        arrays = {name: _array(top[entry].get(name)) for name in ("mu", "sigma")}
    except PickleError as error:
        raise EvaluationError(f"{shown}: is no file of statistics as EDM2 publishes them ({error})") from None
    return _checked(arrays, features, shown)


def _array(value: object) -> NDArray[np.float64]:
    """An array from what its pickle says, by any of the protocols 2 to 5."""
    match value:
        case Record(name, (Name("numpy.ndarray"), *_), (_, tuple(shape), dtype, order, data)) if name in _ARRAY:
            pass
        case Record(name, (data, dtype, tuple(shape), order)) if name in _BUFFER:
            order = order == "F"
        case _:
            raise PickleError("something else than arrays")
    match data:
        case Record("_codecs.encode", (str(text), "latin1")):
            data = text.encode("latin1")
    match dtype:
        case Record("numpy.dtype", (str(kind), *_), (_, "<", *_)) if kind in _KINDS:
            pass
        case _:
            raise PickleError("numbers that are not float32 or float64")
    if not isinstance(data, bytes | bytearray) or not all(type(length) is int and length >= 0 for length in shape):
        raise PickleError("an array that is none")
    if len(data) != _KINDS[kind].itemsize * int(np.prod([1, *shape], dtype=object)):
        raise PickleError("an array that is cut short")
    return np.frombuffer(data, _KINDS[kind]).reshape(shape, order="F" if order else "C").astype(np.float64)


def read_arrays(path: Path, features: str, shown: str) -> FeatureSet:
    """The statistics in an `.npz` file with `mu` and `sigma`, whatever else it holds. Raises EvaluationError."""
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {name: _member(archive, f"{name}.npy") for name in ("mu", "sigma")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        reason = one_line(error)
        raise EvaluationError(f"{shown}: holds no arrays mu and sigma that can be read ({reason})") from None
    return _checked(arrays, features, shown)


def _member(archive: zipfile.ZipFile, name: str) -> NDArray[np.float64]:
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    if dtype.kind != "f" or len(shape) not in (1, 2) or max(shape, default=0) > LARGEST:
        raise ValueError(f"{name} is an array {list(shape)} of {dtype}")
    with archive.open(name) as file:
        return np.lib.format.read_array(file, allow_pickle=False).astype(np.float64)


def _checked(arrays: Mapping[str, NDArray[np.float64]], features: str, shown: str) -> FeatureSet:
    """Raises EvaluationError unless they are a mean and a covariance of as many features as the network has."""
    mu, sigma = arrays["mu"], arrays["sigma"]
    width = WIDTHS.get(features, len(mu) if mu.ndim == 1 else 0)
    if mu.shape != (width,) or sigma.shape != (width, width):
        raise EvaluationError(
            f"{shown}: has mu {list(mu.shape)} and sigma {list(sigma.shape)}, but {features} needs [{width}] and "
            f"[{width}, {width}]; it is of other features"
        )
    whole = np.isfinite(mu).all() and np.isfinite(sigma).all()
    if not whole or np.abs(sigma - sigma.T).max() > ASYMMETRY * max(np.abs(sigma).max(), 1e-30):
        raise EvaluationError(f"{shown}: its mu and sigma are no mean and covariance; get it again")
    return FeatureSet(None, _tensor(mu), _tensor(sigma))


def _tensor(array: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def write_arrays(path: Path, found: FeatureSet) -> None:
    """Write `mu` and `sigma` as the others' evaluators read them."""
    with open(path, "wb") as file:
        np.savez(file, mu=found.mean.numpy(), sigma=found.covariance.numpy())
