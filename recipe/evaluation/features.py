"""Networks that turn pictures into features, by name.

Features are only compared with features of the same network, weights and resizing: a `digest` names all three.
"""

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recipe.evaluation import dinov2, inception
from recipe.evaluation.feature_set import EvaluationError
from recipe.evaluation.network_weights import WeightsChoice, load_weights

KNOWN = ("inception", *dinov2.RULES)
"""Networks that need no import path."""
Compute = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""Features [N, D] and, of a classifier, logits [N, K] of uint8 pictures [N, 3, H, W]."""
_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class FeatureNetwork:
    """A network that is loaded.

    Attributes:
        name: as the command line has it.
        digest: of network, weights and resizing, in hexadecimal.
        device: where it computes.
        compute: the network itself.
        has_logits: it also gives those of a classifier.
    """

    name: str
    digest: str
    device: torch.device
    compute: Compute
    has_logits: bool = False

    @property
    def title(self) -> str:
        """Of the Frechet distance of its features."""
        return title_of(self.name)

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features float32 [N, D] and logits [N, K] or None, on the device, of uint8 pictures [N, C, H, W].

        Grey pictures (C = 1) are given as three equal channels.

        Raises:
            EvaluationError: what the network gives is no such thing.
        """
        count = len(pictures)
        if pictures.shape[1] == 1:
            pictures = pictures.expand(-1, 3, -1, -1)
        features, logits = self.compute(pictures.to(self.device))
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != count:
            found = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise EvaluationError(
                f"--features {self.name}: gives {found} for {count} pictures, but must give a tensor [{count}, D]"
            )
        return features.float(), logits


def title_of(name: str) -> str:
    """What the Frechet distance of a network's features is called: only Inception's is FID."""
    published = {"inception": "FID"} | dict.fromkeys(dinov2.RULES, "FD_DINOv2")
    return published.get(name, f"FD ({name.rpartition(':')[2]})")


def by_import_path(name: str, device: torch.device) -> FeatureNetwork:
    """A network of the user's own, MODULE:FUNCTION: what takes uint8 [N, 3, H, W] and gives [N, D].

    A `torch.nn.Module` is moved to the device and put into evaluation mode; its weights and class are in the digest. Of
    a function it is the text of its module: what this reads from elsewhere is not known here.

    Raises:
        EvaluationError: no such module, or nothing in it that can be called by this name.
    """
    found = imported(name)
    digest = hashlib.sha256(name.rpartition(":")[2].encode())
    source = inspect.getsourcefile(type(found) if isinstance(found, nn.Module) else inspect.unwrap(found))
    digest.update(Path(source).read_bytes() if source else b"")
    if isinstance(found, nn.Module):
        found = found.to(device).eval().requires_grad_(False)
        for key, tensor in found.state_dict().items():
            digest.update(key.encode())
            digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return FeatureNetwork(name, digest.hexdigest(), device, lambda pictures: (found(pictures), None))


def imported(name: str) -> Any:
    if not _PATH.fullmatch(name):
        raise EvaluationError(f"--features {name}: must be inception, dinov2, dinov2-pil, or MODULE:FUNCTION to import")
    module, _, function = name.partition(":")
    if "" not in sys.path:
        sys.path.append("")  # scripts are looked for in the folder of the script alone
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # a module can raise anything
        reason = " ".join(str(error).split())[:200]
        raise EvaluationError(
            f"--features {name}: {module} cannot be imported ({type(error).__name__}: {reason}); check the name, or "
            "run the command in the folder where it lies"
        ) from None
    if not callable(found):
        raise EvaluationError(f"--features {name}: {module} has nothing called {function} that can be called")
    return found


def find_network(name: str, device: torch.device, weights: WeightsChoice | None = None) -> FeatureNetwork:
    """The network of a name: inception, dinov2, dinov2-pil, or MODULE:FUNCTION.

    On CUDA convolutions no longer round their inputs to TF32 afterwards, in this process, as torch has them do.

    Raises:
        EvaluationError: no such network, or weights that are missing, damaged or not known.
    """
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    choice = weights or WeightsChoice()
    if name == "inception":
        tensors, digest = load_weights(inception.WEIGHTS, choice, name)
        return _published(name, inception.RULE, digest, device, inception.Inception(tensors, device), True)
    if name in dinov2.RULES:
        tensors, digest = load_weights(dinov2.WEIGHTS, choice, name)
        network = dinov2.DinoV2(tensors, name, device)
        return _published(name, dinov2.RULES[name], digest, device, network, False)
    if choice != WeightsChoice():
        option = "--weights" if choice.folder else "--accept-weights"
        raise EvaluationError(f"{option}: is of inception and dinov2; leave it out with --features {name}")
    return by_import_path(name, device)


def _published(
    name: str, rule: str, weights: str, device: torch.device, compute: Compute, has_logits: bool
) -> FeatureNetwork:
    digest = hashlib.sha256(f"{rule} {weights}".encode()).hexdigest()
    return FeatureNetwork(name, digest, device, compute, has_logits)
