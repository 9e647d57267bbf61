"""EDM2's denoiser as a model of diffusers; a file of its own, which needs torch and diffusers alone.

    unet = AutoModel.from_pretrained(FOLDER, subfolder="unet", trust_remote_code=True)
    denoised = unet(noisy, sigma, class_labels).sample

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models" (arXiv 2312.02696), CONFIG G.
"""

import math
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.outputs import BaseOutput
from torch import Tensor, nn
from torch.nn import functional as F


def inverse_rms(x: Tensor, dim: int) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=torch.float32)
    return 1 / (norm * x.shape[dim] ** -0.5 + 1e-4)


def normalize(x: Tensor, dim: int) -> Tensor:
    """To unit RMS along a dimension (eq. 30)."""
    return x * inverse_rms(x, dim).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    return F.silu(x) * (1 / 0.596)


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    return torch.lerp(a, b, t) / math.sqrt((1 - t) ** 2 + t**2)


class MPLayer(nn.Module):
    """Convolution or linear layer whose weight is normalised on use (eq. 47, 66)."""

    def __init__(self, *shape: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        weight = self.weight.float().flatten(1)
        weight = weight * (inverse_rms(weight, 1) * (gain / math.sqrt(weight.shape[1])))
        weight = weight.reshape(self.weight.shape).to(x.dtype)
        return F.linear(x, weight) if weight.ndim == 2 else F.conv2d(x, weight, padding=weight.shape[-1] // 2)


class Fourier(nn.Module):
    """Fourier features of the noise label (eq. 75)."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.outer(x, self.freqs.float()) + self.phases.float()).cos() * math.sqrt(2)


class Block(nn.Module):
    """A block of the encoder or decoder (Figure 22)."""

    def __init__(self, c_in: int, c_out: int, c_emb: int, encodes: bool, mode: str, attends: bool, config: dict):
        super().__init__()
        self.encodes, self.mode, self.config = encodes, mode, config
        self.emb_gain = nn.Parameter(torch.zeros(1))
        self.conv_res0 = MPLayer(c_out, c_out if encodes else c_in, 3, 3)
        self.emb_linear = MPLayer(c_out, c_emb)
        self.conv_res1 = MPLayer(c_out, c_out, 3, 3)
        self.conv_skip = MPLayer(c_out, c_in, 1, 1) if c_in != c_out else None
        self.attn_qkv = MPLayer(3 * c_out, c_out, 1, 1) if attends else None
        self.attn_proj = MPLayer(c_out, c_out, 1, 1) if attends else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.mode == "down":
            x = F.avg_pool2d(x, 2)
        elif self.mode == "up":
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        skip = x if self.conv_skip is None else self.conv_skip(x)
        if self.encodes:
            x = skip = normalize(skip, 1)
        y = self.conv_res0(mp_silu(x))
        scale = self.emb_linear(emb, self.emb_gain.float()) + 1
        y = mp_silu(y * scale[:, :, None, None].to(y.dtype))
        y = self.conv_res1(F.dropout(y, self.config["dropout"], self.training))
        x = mp_sum(skip, y, self.config["res_balance"])
        if self.attn_qkv is not None and self.attn_proj is not None:
            x = mp_sum(x, self.attn_proj(self._attention(self.attn_qkv(x))), self.config["attn_balance"])
        limit = self.config["clip_act"]
        return x if limit is None else x.clamp(-limit, limit)

    def _attention(self, qkv: Tensor) -> Tensor:
        n, c, h, w = qkv.shape
        parts = qkv.reshape(n, -1, self.config["channels_per_head"], 3, h * w)  # (n, heads, c, q k v, hw)
        q, k, v = normalize(parts, 2).permute(3, 0, 1, 4, 2)
        return F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(n, c // 3, h, w)


class UNet(nn.Module):
    """The raw network: image and embedding in, image out."""

    def __init__(self, config: dict):
        super().__init__()
        base, multipliers = config["model_channels"], config["channel_mult"]
        widths = [base * multiple for multiple in multipliers]
        c_noise = base * (config["channel_mult_noise"] or multipliers[0])
        self.c_emb = base * (config["channel_mult_emb"] or max(multipliers))
        self.config = config
        self.emb_fourier = Fourier(c_noise)
        self.emb_noise = MPLayer(self.c_emb, c_noise)
        self.emb_label = MPLayer(self.c_emb, config["label_dim"]) if config["label_dim"] > 0 else None
        levels = [(config["img_resolution"] >> index, width) for index, width in enumerate(widths)]
        skips = self._build_encoder(levels)
        self._build_decoder(levels, skips)
        self.out_conv = MPLayer(config["img_channels"], widths[0], 3, 3)
        self.out_gain = nn.Parameter(torch.zeros(1))

    def _block(self, c_in: int, c_out: int, encodes: bool, mode: str = "keep", attends: bool = False) -> Block:
        return Block(c_in, c_out, self.c_emb, encodes, mode, attends, self.config)

    def _build_encoder(self, levels: list[tuple[int, int]]) -> list[int]:
        self.enc = nn.ModuleDict()
        channels = levels[0][1]
        self.enc[f"{levels[0][0]}x{levels[0][0]}_conv"] = MPLayer(channels, self.config["img_channels"] + 1, 3, 3)
        skips = [channels]
        for index, (res, width) in enumerate(levels):
            if index > 0:
                self.enc[f"{res}x{res}_down"] = self._block(channels, channels, True, "down")
                skips.append(channels)
            for number in range(self.config["num_blocks"]):
                attends = res in self.config["attn_resolutions"]
                self.enc[f"{res}x{res}_block{number}"] = self._block(channels, width, True, attends=attends)
                channels = width
                skips.append(channels)
        return skips

    def _build_decoder(self, levels: list[tuple[int, int]], skips: list[int]) -> None:
        self.dec = nn.ModuleDict()
        channels = skips[-1]
        for res, width in reversed(levels):
            if res == levels[-1][0]:
                self.dec[f"{res}x{res}_in0"] = self._block(channels, channels, False, attends=True)
                self.dec[f"{res}x{res}_in1"] = self._block(channels, channels, False)
            else:
                self.dec[f"{res}x{res}_up"] = self._block(channels, channels, False, "up")
            for number in range(self.config["num_blocks"] + 1):
                attends = res in self.config["attn_resolutions"]
                block = self._block(channels + skips.pop(), width, False, attends=attends)
                self.dec[f"{res}x{res}_block{number}"] = block
                channels = width

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor) -> Tensor:
        emb = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None:
            classes = torch.arange(self.config["label_dim"], device=labels.device)
            one_hot = (labels[:, None] == classes).float() * math.sqrt(len(classes))  # -1: all zeros
            emb = mp_sum(emb, self.emb_label(one_hot), self.config["label_balance"])
        emb = mp_silu(emb)
        x, skips = torch.cat([x, torch.ones_like(x[:, :1])], 1), []
        for name, layer in self.enc.items():  # by name: diffusers runs this file anew for each model, so classes differ
            x = layer(x) if name.endswith("_conv") else layer(x, emb)
            skips.append(x)
        t = self.config["concat_balance"]
        for name, layer in self.dec.items():
            if "block" in name:
                skip = skips.pop()
                scale = math.sqrt((x.shape[1] + skip.shape[1]) / ((1 - t) ** 2 + t**2))  # eq. 103
                x, skip = x * (scale * (1 - t) / math.sqrt(x.shape[1])), skip * (scale * t / math.sqrt(skip.shape[1]))
                x = torch.cat([x, skip], 1)
            x = layer(x, emb)
        return self.out_conv(x, self.out_gain.float())


@dataclass
class EDM2Output(BaseOutput):
    """The denoised images, float32 [N, C, H, W]."""

    sample: Tensor


class EDM2Model(ModelMixin, ConfigMixin):
    """The denoiser D(x; sigma, label) (eq. 4-8).

    Attributes:
        activations: their dtype; None = float16 on CUDA, float32 elsewhere. Input, output and embedding are float32.
    """

    _keys_to_ignore_on_load_unexpected = (r"^logvar_", r"^unet\.emb_augment")  # of training alone
    activations: torch.dtype | None = None

    @register_to_config
    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        model_channels: int = 192,
        channel_mult: tuple[int, ...] = (1, 2, 3, 4),
        channel_mult_noise: int | None = None,
        channel_mult_emb: int | None = None,
        num_blocks: int = 3,
        attn_resolutions: tuple[int, ...] = (16, 8),
        channels_per_head: int = 64,
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float | None = 256.0,
        dropout: float = 0.0,
        sigma_data: float = 0.5,
        latent_mean: tuple[float, ...] | None = None,
        latent_std: tuple[float, ...] | None = None,
        auto_map: dict | None = None,
    ):
        """Arguments of the network; of one that was trained on latents, their mean and deviation by channel.

        `auto_map` is for diffusers' AutoModel: without the argument it warns of the entry in the configuration.
        """
        super().__init__()
        self.unet = UNet(dict(self.config))

    def forward(
        self, sample: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> EDM2Output | tuple[Tensor]:
        """Denoise `sample` [N, C, H, W] of noise level `sigma` ([N], or one number).

        `class_labels` are ids, int64 [N]; -1, or None for all, is unconditional.
        """
        x, data = sample.float(), self.config["sigma_data"]
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(len(x))
        if class_labels is None:
            class_labels = torch.full((len(x),), -1, device=x.device)
        s = sigma[:, None, None, None]
        total = data**2 + s**2
        dtype = self.activations or (torch.float16 if x.is_cuda else torch.float32)
        f_x = self.unet((1 / total.sqrt() * x).to(dtype), sigma.log() / 4, class_labels)
        denoised = data**2 / total * x + s * data / total.sqrt() * f_x.float()
        return EDM2Output(sample=denoised) if return_dict else (denoised,)
