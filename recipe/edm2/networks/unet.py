"""The magnitude-preserving U-Net, CONFIG G (Figure 22, Appendix B.7)."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from recipe.edm2.networks.layers import MPConv, MPFourier, mp_cat, mp_silu, mp_sum, normalize, resample


class Block(nn.Module):
    """One encoder or decoder block: resample, residual branch modulated by the embedding, optional self-attention.

    Args:
        in_channels, out_channels: widths of the activations.
        emb_channels: width of the embedding.
        flavor: "enc" normalises each pixel at its start (PixelNorm, eq. 30), "dec" does not.
        resample_mode: "keep", "down" or "up", applied to the block's input.
        attention: append multi-head cosine self-attention.
        channels_per_head: width of an attention head; divides `out_channels`.
        dropout: probability, on the residual branch.
        res_balance, attn_balance: share t of the residual and of the attention branch in their MP sums (eq. 88).
        clip_act: activations are clipped to +-clip_act at the end; None = no clipping.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        flavor: str = "enc",
        resample_mode: str = "keep",
        attention: bool = False,
        channels_per_head: int = 64,
        dropout: float = 0.0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float | None = 256.0,
    ):
        super().__init__()
        if attention and out_channels % channels_per_head != 0:
            raise ValueError(f"channels_per_head {channels_per_head} does not divide a block's {out_channels} channels")
        self.flavor = flavor
        self.resample_mode = resample_mode
        self.num_heads = out_channels // channels_per_head if attention else 0
        self.dropout = dropout
        self.res_balance = res_balance
        self.attn_balance = attn_balance
        self.clip_act = clip_act
        # A gain has shape [1] and not []: FSDP2 shards dim 0 and rejects scalars.
        self.emb_gain = nn.Parameter(torch.zeros(1))
        self.conv_res0 = MPConv(out_channels if flavor == "enc" else in_channels, out_channels, (3, 3))
        self.emb_linear = MPConv(emb_channels, out_channels)
        self.conv_res1 = MPConv(out_channels, out_channels, (3, 3))
        self.conv_skip = MPConv(in_channels, out_channels, (1, 1)) if in_channels != out_channels else None
        self.attn_qkv = MPConv(out_channels, out_channels * 3, (1, 1)) if attention else None
        self.attn_proj = MPConv(out_channels, out_channels, (1, 1)) if attention else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        x = resample(x, self.resample_mode)  # (N, C_in, H, W)
        if self.flavor == "enc":
            if self.conv_skip is not None:
                x = self.conv_skip(x)
            x = normalize(x, dim=1)
        y = self.conv_res0(mp_silu(x))  # (N, C, H, W)
        scale = self.emb_linear(emb, gain=self.emb_gain) + 1  # (N, C)
        y = mp_silu(y * scale[:, :, None, None].to(y.dtype))
        y = F.dropout(y, p=self.dropout, training=self.training)
        y = self.conv_res1(y)
        if self.flavor == "dec" and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, y, t=self.res_balance)
        if self.num_heads > 0:
            x = mp_sum(x, self.self_attention(x), t=self.attn_balance)
        if self.clip_act is not None:
            x = x.clamp(-self.clip_act, self.clip_act)
        return x

    def self_attention(self, x: Tensor) -> Tensor:
        """Cosine attention over the pixels of `x` [N, C, H, W]: q, k and v are normalised per head (eq. 30, 34)."""
        assert self.attn_qkv is not None and self.attn_proj is not None
        n, c, h, w = x.shape
        # The published weights order the 3C outputs of attn_qkv as (head, channel within the head, one of q k v).
        qkv = self.attn_qkv(x).reshape(n, self.num_heads, c // self.num_heads, 3, h * w)
        q, k, v = normalize(qkv, dim=2).permute(3, 0, 1, 4, 2)  # each (N, heads, HW, C/heads)
        y = F.scaled_dot_product_attention(q, k, v)  # scale 1/sqrt(C/heads)
        return self.attn_proj(y.transpose(2, 3).reshape(n, c, h, w))


@dataclass(frozen=True)
class Level:
    """One resolution of the U-Net.

    Attributes:
        res: height and width of its activations.
        width: channels of its blocks.
        attention: whether its blocks have self-attention.
    """

    res: int
    width: int
    attention: bool


class UNet(nn.Module):
    """The raw network F_theta of eq. 4: image, noise label and class in, image out.

    Activations have the dtype of `x`; the embedding path is float32 (Appendix D.2).

    Args:
        img_resolution: height and width of the images; halved once per level after the first.
        img_channels: channels of the images.
        label_dim: number of classes; 0 = unconditional.
        model_channels: base width.
        channel_mult: width of each level, times `model_channels`.
        channel_mult_noise: width of the Fourier features; None = channel_mult[0].
        channel_mult_emb: width of the embedding; None = max(channel_mult).
        num_blocks: residual blocks per level of the encoder; the decoder has one more.
        attn_resolutions: resolutions with self-attention.
        label_balance: share t of the class in the embedding (eq. 88).
        concat_balance: share t of the skip connection in a concatenation (eq. 103).
        augment_dim: width of the augmentation's conditions; 0 = none, and no parameters for them.
        block_kwargs: further arguments of `Block`: channels_per_head, dropout, res_balance, attn_balance, clip_act.

    Raises:
        ValueError: a resolution that cannot be halved once per level, or attention heads that do not divide a width.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_noise: int | None = None,
        channel_mult_emb: int | None = None,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (16, 8),
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        augment_dim: int = 0,
        **block_kwargs: Any,
    ):
        super().__init__()
        self.label_dim = label_dim
        self.label_balance = label_balance
        self.concat_balance = concat_balance
        self.augment_dim = augment_dim
        self.activation_checkpointing = False  # set it to trade a second forward pass for the blocks' activations
        noise_channels = model_channels * (channel_mult[0] if channel_mult_noise is None else channel_mult_noise)
        emb_channels = model_channels * (max(channel_mult) if channel_mult_emb is None else channel_mult_emb)
        levels = _levels(img_resolution, model_channels, channel_mult, attn_resolutions)
        block = functools.partial(Block, emb_channels=emb_channels, **block_kwargs)
        # Modules are made in the order of the published parameters, in which fresh weights are drawn, too.
        self._build_embedding(noise_channels, emb_channels)
        skip_channels = self._build_encoder(img_channels, levels, num_blocks, block)
        self._build_decoder(levels, num_blocks, block, skip_channels)
        self.out_conv = MPConv(levels[0].width, img_channels, (3, 3))
        self.out_gain = nn.Parameter(torch.zeros(1))

    def _build_embedding(self, noise_channels: int, emb_channels: int) -> None:
        self.emb_fourier = MPFourier(noise_channels)
        self.emb_noise = MPConv(noise_channels, emb_channels)
        self.emb_label = MPConv(self.label_dim, emb_channels) if self.label_dim > 0 else None
        if self.augment_dim > 0:
            self.emb_augment = MPConv(self.augment_dim, emb_channels)
            self.emb_augment_gain = nn.Parameter(torch.zeros(1))

    def _build_encoder(
        self, img_channels: int, levels: list[Level], num_blocks: int, block: Callable[..., Block]
    ) -> list[int]:
        """Make `enc`; returns the widths of its layers' outputs, which are the decoder's skip connections."""
        self.enc = nn.ModuleDict()
        channels = levels[0].width
        # The image has one more channel, of ones, which stands in for biases.
        self.enc[f"{levels[0].res}x{levels[0].res}_conv"] = MPConv(img_channels + 1, channels, (3, 3))
        skip_channels = [channels]
        for level in levels:
            if level is not levels[0]:
                self.enc[f"{level.res}x{level.res}_down"] = block(channels, channels, resample_mode="down")
                skip_channels.append(channels)
            for index in range(num_blocks):
                name = f"{level.res}x{level.res}_block{index}"
                self.enc[name] = block(channels, level.width, attention=level.attention)
                channels = level.width
                skip_channels.append(channels)
        return skip_channels

    def _build_decoder(
        self, levels: list[Level], num_blocks: int, block: Callable[..., Block], skip_channels: list[int]
    ) -> None:
        """Make `dec`; each of its numbered blocks takes a skip connection, the encoder's last one first."""
        self.dec = nn.ModuleDict()
        waiting = list(skip_channels)
        channels = waiting[-1]
        for level in reversed(levels):
            size = f"{level.res}x{level.res}"
            if level is levels[-1]:
                self.dec[f"{size}_in0"] = block(channels, channels, flavor="dec", attention=True)
                self.dec[f"{size}_in1"] = block(channels, channels, flavor="dec")
            else:
                self.dec[f"{size}_up"] = block(channels, channels, flavor="dec", resample_mode="up")
            for index in range(num_blocks + 1):
                self.dec[f"{size}_block{index}"] = block(
                    channels + waiting.pop(), level.width, flavor="dec", attention=level.attention
                )
                channels = level.width

    def blocks(self) -> list[Block]:
        """The blocks in order of execution."""
        return [layer for layer in (*self.enc.values(), *self.dec.values()) if isinstance(layer, Block)]

    def embed(self, c_noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        """Embedding [N, emb_channels] in float32 of noise labels [N], class ids [N] (-1 or None = unconditional) and
        conditions of the augmentation [N, augment_dim] (0 or None = untouched images).
        """
        emb = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None:
            classes = torch.arange(self.label_dim, device=emb.device)
            if labels is None:
                labels = torch.full_like(c_noise, -1, dtype=torch.int64)
            one_hot = (labels[:, None] == classes).to(emb.dtype)  # an id of -1 matches no class: all zeros
            emb = mp_sum(emb, self.emb_label(one_hot * math.sqrt(self.label_dim)), t=self.label_balance)
        if augment is not None:
            # A plain sum: conditions of 0 leave the embedding as it is in a network without them, also its magnitude.
            emb = emb + self.emb_augment(augment, gain=self.emb_augment_gain)
        return mp_silu(emb)

    def run_block(self, block: nn.Module, x: Tensor, emb: Tensor) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, emb, use_reentrant=False)  # pyright: ignore[reportReturnType]
        return block(x, emb)

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """Map `x` [N, C, H, W], `c_noise` [N], int64 `labels` [N] or None, `augment` [N, 9] or None to [N, C, H, W]."""
        emb = self.embed(c_noise, labels, augment)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        skips = []
        for layer in self.enc.values():
            x = self.run_block(layer, x, emb) if isinstance(layer, Block) else layer(x)
            skips.append(x)
        for name, layer in self.dec.items():
            if "block" in name:
                x = mp_cat(x, skips.pop(), t=self.concat_balance)
            x = self.run_block(layer, x, emb)
        return self.out_conv(x, gain=self.out_gain)


def _levels(
    img_resolution: int, model_channels: int, channel_mult: Sequence[int], attn_resolutions: Sequence[int]
) -> list[Level]:
    """From the highest resolution to the lowest."""
    halvings = len(channel_mult) - 1
    if img_resolution % 2**halvings != 0:
        raise ValueError(
            f"img_resolution {img_resolution} cannot be halved {halvings} times, once per level after the first of "
            f"channel_mult {list(channel_mult)}"
        )
    resolutions = [img_resolution >> level for level in range(len(channel_mult))]
    return [
        Level(res, model_channels * mult, res in attn_resolutions)
        for res, mult in zip(resolutions, channel_mult, strict=True)
    ]
