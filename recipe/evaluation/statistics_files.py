"""Files of statistics by their ending, local or in object storage."""

from pathlib import Path

from recipe.evaluation.feature_set import EvaluationError, FeatureSet
from recipe.evaluation.foreign_statistics import read_arrays, read_pickled, write_arrays
from recipe.evaluation.reference import About, Reference, load_reference, save_reference
from recipe.storage.addresses import split_address
from recipe.storage.fetching import at_hand
from recipe.storage.places import MissingError

OWN, ARRAYS, PICKLES = ".safetensors", ".npz", (".pkl", ".pickle")
WRITTEN = (OWN, ARRAYS)


def open_reference(address: str, features: str) -> Reference:
    """The statistics at a local path or s3:// address.

    Args:
        address: of our own `.safetensors`, an `.npz` with mu and sigma, or a `.pkl` as EDM2 publishes it.
        features: name of the network that a file of others is of; it does not say it itself.

    Raises:
        EvaluationError: it is no such file, or of other features.
        StorageError: it is not there, or cannot be read.
    """
    suffix = Path(address).suffix.lower()
    if suffix not in (OWN, ARRAYS, *PICKLES):
        known = ", ".join((OWN, ARRAYS, PICKLES[0]))
        raise EvaluationError(f"{address}: statistics are files {known}; make some with recipe/evaluate.py ref")
    place, name = split_address(address)
    if place.size(name) is None:
        raise MissingError(f"{place.describe(name)}: there is no such file; check the path")
    with at_hand(place, name) as path:
        if suffix == OWN:
            return load_reference(path, address)
        read = read_arrays(path, features, address) if suffix == ARRAYS else None
        found = read or read_pickled(path.read_bytes(), features, address)
    return Reference(address, About(features), found)


def write_reference(address: str, about: About, found: FeatureSet) -> None:
    """Write statistics by the ending of the address, WRITTEN, whole or not at all."""
    place, name = split_address(address)
    if Path(address).suffix.lower() == ARRAYS:
        place.make(name, lambda path: write_arrays(path, found))
    else:
        place.make(name, lambda path: save_reference(path, about, found))
