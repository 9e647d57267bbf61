"""A file of Inception's weights with its exact architecture and random numbers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from recipe.evaluation import inception, network_weights
from recipe.evaluation.network_weights import WeightsChoice


def random_inception(folder: Path) -> WeightsChoice:
    """A file of the right name and architecture."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    class Bare(theirs.FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict: Any, *args: Any, **options: Any) -> Any:
            return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "load_state_dict_from_url", lambda *args, **options: {})
        torch.manual_seed(0)
        torch.save(Bare("bare", ["2048"]).state_dict(), folder / inception.WEIGHTS.file)
    return WeightsChoice(folder, network_weights.ANY)
