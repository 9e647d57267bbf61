"""DINOv2's ViT-L/14 (Oquab et al., 2023), whose 1024 features FD_DINOv2 is of (Stein et al., 2023).

Written here because the published way to load it runs source code that it fetches. Parameters are called as in the
published file.
"""

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from recipe.evaluation.feature_set import EvaluationError
from recipe.evaluation.network_weights import PublishedWeights

WEIGHTS = PublishedWeights(
    "dinov2_vitl14_pretrain.pth",
    "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
    "",  # its authors publish none
)
SIZE = 224  # pixels, both sides
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, in [0, 1]
OFFSET = 0.1  # added to the number of patches when the grid of positions is resized, as its authors do
RULES = {
    "dinov2": "dinov2: bicubic with antialiasing in float32 to 224x224; class token after the norm",
    "dinov2-pil": "dinov2: Pillow's bicubic in 8 bits to 224x224; class token after the norm",
}
"""How pictures are resized, by name: as EDM2's official code does by default, and as dgm-eval does."""


class Attention(nn.Module):
    """Multi-head self-attention over tokens [N, T, C]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width))


class Mlp(nn.Module):
    """Two layers with GELU between them."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor for each channel of a branch."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """x + ls1(attention(norm1(x))), then the same with the MLP."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width)
        self.ls2 = LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Patches of pixels to tokens [N, T, C], row by row."""

    def __init__(self, width: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """The class token after the last norm, [N, width], of normalised pictures [N, 3, H, W]; ViT-L/14 by default.

    Args:
        width: channels of a token.
        depth: number of blocks.
        heads: of the attention.
        patch: side of a patch in pixels.
        grid: side, in patches, of the pictures that the positions were learned for.
    """

    def __init__(self, width: int = 1024, depth: int = 24, heads: int = 16, patch: int = 14, grid: int = 37):
        super().__init__()
        self.patch, self.grid = patch, grid
        self.patch_embed = PatchEmbed(width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid * grid, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # of its training alone; the file holds it
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[2] // self.patch, x.shape[3] // self.patch
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], dim=1)
        x = x + self.positions(rows, columns)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]

    def positions(self, rows: int, columns: int) -> Tensor:
        """Position embeddings [1, 1 + rows * columns, width] of a grid of patches, from the learned one."""
        if rows == columns == self.grid:
            return self.pos_embed
        learned = self.pos_embed[:, 1:].unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
        # The scale, not the size, decides where samples are taken: with OFFSET it is not quite rows / grid.
        scale = ((rows + OFFSET) / self.grid, (columns + OFFSET) / self.grid)
        resized = functional.interpolate(learned, scale_factor=scale, mode="bicubic")
        assert resized.shape[2:] == (rows, columns), resized.shape
        return torch.cat([self.pos_embed[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)


class DinoV2:
    """Gives 1024 features of uint8 pictures [N, 3, H, W] of any size.

    Args:
        weights: tensors by name, as DINOv2's authors publish them.
        name: of RULES: how pictures are resized.
        network: of another size, for tests.

    Raises:
        EvaluationError: the weights are those of another network.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        name: str,
        device: torch.device,
        network: VisionTransformer | None = None,
    ):
        self.name = name
        if network is None:
            with torch.device("meta"):  # 1.2 GB that need not be drawn at random
                network = VisionTransformer()
        try:
            network.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise EvaluationError(f"{WEIGHTS.file}: does not hold the weights of ViT-L/14 ({reason})") from None
        self.network = network.float().to(device).eval().requires_grad_(False)

    def __call__(self, pictures: Tensor) -> tuple[Tensor, None]:
        x = resized_by_pillow(pictures) if self.name == "dinov2-pil" else resized(pictures)
        mean, std = (torch.tensor(values, device=x.device).view(3, 1, 1) * 255 for values in (MEAN, STD))
        return self.network((x - mean) / std), None


def resized(pictures: Tensor) -> Tensor:
    """Float32 [N, 3, 224, 224] in 0 to 255, and a little beyond."""
    return functional.interpolate(pictures.float(), (SIZE, SIZE), mode="bicubic", antialias=True)


def resized_by_pillow(pictures: Tensor) -> Tensor:
    """The same, rounded to whole numbers from 0 to 255."""
    arrays = pictures.permute(0, 2, 3, 1).cpu().numpy()
    images = (Image.fromarray(array).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for array in arrays)
    return (
        torch.from_numpy(np.stack([np.asarray(image) for image in images]))
        .permute(0, 3, 1, 2)
        .float()
        .to(pictures.device)
    )
