"""Inception-v3 with the weights of 2015 that FID is defined by, through torch-fidelity: 2048 features and 1008 logits.

torch-fidelity's own way of loading would unpickle the file without restriction. So it is read here, and handed over as
a file in memory.
"""

import importlib.util
import io
from collections.abc import Mapping

import torch
from torch import Tensor

from recipe.evaluation.feature_set import EvaluationError
from recipe.evaluation.network_weights import PublishedWeights

WEIGHTS = PublishedWeights(
    "weights-inception-2015-12-05-6726825d.pth",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "6726825d",  # as the file's name says
)
RULE = "inception: bilinear as TensorFlow 1 to 299x299, (x - 128) / 128; features 2048; logits without bias"
OUTPUTS = ("2048", "logits_unbiased")


class Inception:
    """Gives features and logits of uint8 pictures [N, 3, H, W] of any size, as float32 [N, 2048] and [N, 1008].

    Args:
        weights: tensors by name, as torch-fidelity publishes them.

    Raises:
        EvaluationError: torch-fidelity is missing, or the weights are those of another network.
    """

    def __init__(self, weights: Mapping[str, Tensor], device: torch.device):
        if importlib.util.find_spec("torch_fidelity") is None:
            raise EvaluationError(
                "--features inception: needs the package torch-fidelity (pip install 'edm2-recipe[evaluate]'), which "
                "is missing"
            )
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        file = io.BytesIO()
        torch.save(dict(weights), file)
        file.seek(0)
        try:
            network = FeatureExtractorInceptionV3("inception", list(OUTPUTS), feature_extractor_weights_path=file)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise EvaluationError(f"{WEIGHTS.file}: does not hold Inception's weights ({reason})") from None
        self.network = network.to(device)

    def __call__(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.network(pictures)
        return features, logits
