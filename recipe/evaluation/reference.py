"""Statistics of a data set's features, which pictures are measured against: one safetensors file.

It holds N, mean and covariance in float64 and, when asked for, the features themselves in float32, which KID,
precision, recall, density and coverage need. Its metadata say of which network, weights, resizing and pictures they
are, so that what must not be compared is refused.
"""

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from recipe.evaluation.feature_set import EvaluationError, FeatureSet
from recipe.evaluation.features import FeatureNetwork
from recipe.evaluation.metrics import check_enough, chosen
from recipe.weights.tensor_writing import save_tensors

METADATA_KEY = "edm2-recipe statistics"
FORMAT = 1
AGAIN = "make the statistics again with recipe/evaluate.py ref"


@dataclass(frozen=True)
class About:
    """What statistics say of themselves; None is what a file of another origin does not say.

    Attributes:
        features: name of the network.
        digest: of network, weights and resizing.
        resolution: height and width of the pictures.
        source: what they were made from.
        source_hash: digest of the list of its pictures.
        crop: how they came to their size; None also if they had it.
        images_per_class: by class id; "-1" = without a class.
    """

    features: str
    digest: str | None = None
    resolution: int | None = None
    source: str | None = None
    source_hash: str | None = None
    crop: str | None = None
    images_per_class: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Reference:
    """Statistics, and where they are from.

    Attributes:
        path: of the file, for messages.
        about: what they say of themselves.
        found: the statistics.
    """

    path: str
    about: About
    found: FeatureSet

    def check_pictures(self, about: About, whose: str) -> None:
        """Raises EvaluationError if pictures that say this of themselves must not be measured against them."""
        reasons = differences(about, self.about)
        if reasons:
            raise EvaluationError(f"{whose} and {self.path} differ in {', '.join(reasons)}; {AGAIN}, alike")

    def check(self, network: FeatureNetwork, metrics: Sequence[str]) -> None:
        """Raises EvaluationError if pictures cannot be measured against them by this network and these metrics."""
        if self.about.features != network.name:
            raise EvaluationError(
                f"{self.path}: holds statistics of the features {self.about.features}, not {network.name}; name "
                f"--features {self.about.features}, or {AGAIN}"
            )
        if self.about.digest not in (None, network.digest):
            raise EvaluationError(
                f"{self.path}: was made with other weights, or another version, of {network.name} (digest "
                f"{self.about.digest[:16]} there, {network.digest[:16]} here); {AGAIN}"
            )
        self.check_metrics(metrics)
        for name, metric in zip(metrics, chosen(metrics), strict=True):
            if metric.keeps_logits and not network.has_logits:
                fix = f"which {network.name} is not; leave it out"
                raise EvaluationError(f"--metrics {name}: needs a classifier, {fix}")

    def check_metrics(self, metrics: Sequence[str]) -> None:
        """Raises EvaluationError if they do not hold what metrics of these names need."""
        for name, metric in zip(metrics, chosen(metrics), strict=True):
            features = self.found.features
            if metric.keeps_features and features is None:
                raise EvaluationError(
                    f"--metrics {name}: needs the features themselves, which {self.path} does not hold; {AGAIN} "
                    "--keep-features"
                )
            if metric.keeps_features and features is not None:
                check_enough([name], len(features), f"{self.path} keeps the features of")


def differences(one: About, other: About) -> Sequence[str]:
    """Why two statistics must not be compared: a few words for each reason."""
    reasons = []
    for name, what in (
        ("features", "features"),
        ("digest", "weights or resizing"),
        ("resolution", "resolution"),
        ("crop", "crop"),
    ):
        left, right = getattr(one, name), getattr(other, name)
        if None not in (left, right) and left != right:
            reasons.append(f"{what} ({_short(left)} and {_short(right)})")
    return reasons


def _short(value: object) -> str:
    """A digest by its first digits, anything else as it is."""
    text = str(value)
    return text[:16] if re.fullmatch("[0-9a-f]{64}", text) else text


def save_reference(path: Path, about: About, found: FeatureSet) -> None:
    """Write statistics to a path of this machine; equal ones make equal files."""
    tensors = {"mean": found.mean, "covariance": found.covariance}
    if found.features is not None:
        tensors["features"] = found.features
    tensors = {name: tensor.cpu() for name, tensor in tensors.items()}
    header = {"format": FORMAT, "version": importlib.metadata.version("edm2-recipe"), "count": found.count}
    text = json.dumps(header | asdict(about) | {"tensors": _digest(tensors)})
    save_tensors(path, tensors, {METADATA_KEY: text})  # one entry: several would be written in random order


def load_reference(path: Path, shown: str) -> Reference:
    """Statistics that `save_reference` wrote. Raises EvaluationError if the file is none or is damaged.

    Args:
        shown: the file in messages.
    """
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})[METADATA_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
        about = About(**{field.name: header[field.name] for field in fields(About)})
        found = FeatureSet(header["count"], tensors["mean"], tensors["covariance"], tensors.get("features"))
        if header["format"] == FORMAT and _digest(tensors) == header["tensors"] and _fits(found):
            return Reference(shown, about, found)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        pass  # the same line as for one that is whole but not as it should be
    raise EvaluationError(f"{shown}: is no whole file of statistics of this version; {AGAIN}")


def _fits(found: FeatureSet) -> bool:
    width = len(found.mean)
    features = found.features
    kept = features is None or (features.ndim == 2 and features.shape[1] == width)
    moments = found.mean.dtype == found.covariance.dtype == torch.float64
    return moments and found.covariance.shape == (width, width) and kept


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {list(tensors[name].shape)} {tensors[name].dtype} ".encode())
        digest.update(_bytes(tensors[name]))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> Any:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy()
