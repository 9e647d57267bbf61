"""EDM2(folder)(x [N, C, H, W], sigma [N], labels [N], -1 = none) denoises, with torch and safetensors alone."""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional as F


def normalize(x: torch.Tensor, dim: int = 1, scale: torch.Tensor | float = 1.0) -> torch.Tensor:
    return x * (1 / (torch.linalg.vector_norm(x, dim=dim, keepdim=True) * x.shape[dim] ** -0.5 + 1e-4) * scale)


def mp_sum(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    return torch.lerp(a, b, t) / math.sqrt((1 - t) ** 2 + t**2)


class EDM2:
    def __init__(self, folder: str | Path, device: str = "cpu"):
        self.config = json.loads((Path(folder) / "config.json").read_text())
        self.w = {name: w.float() for name, w in load_file(Path(folder) / "model.safetensors", device).items()}

    def layer(self, name: str, x: torch.Tensor, gain: torch.Tensor | float = 1.0) -> torch.Tensor:
        rows = (w := self.w[f"{name}.weight"]).flatten(1)
        w = normalize(rows, scale=gain / math.sqrt(rows.shape[1])).reshape(w.shape)
        return F.linear(x, w) if w.ndim == 2 else F.conv2d(x, w, padding=w.shape[-1] // 2)

    def block(self, name: str, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        x = F.avg_pool2d(x, 2) if name.endswith("_down") else F.interpolate(x, scale_factor=1 + name.endswith("_up"))
        skip = self.layer(f"{name}.conv_skip", x) if f"{name}.conv_skip.weight" in self.w else x
        x, skip = (normalize(skip),) * 2 if name.startswith("unet.enc") else (x, skip)
        y = self.layer(f"{name}.conv_res0", F.silu(x) * (1 / 0.596))
        y = y * (self.layer(f"{name}.emb_linear", emb, self.w[f"{name}.emb_gain"]) + 1)[:, :, None, None]
        x = mp_sum(skip, self.layer(f"{name}.conv_res1", F.silu(y) * (1 / 0.596)), self.config["res_balance"])
        if f"{name}.attn_qkv.weight" in self.w:
            shape = len(x), -1, self.config["channels_per_head"], 3, x[0, 0].numel()
            q, k, v = normalize(self.layer(f"{name}.attn_qkv", x).reshape(shape), 2).permute(3, 0, 1, 4, 2)
            y = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape)
            x = mp_sum(x, self.layer(f"{name}.attn_proj", y), self.config["attn_balance"])
        return x if self.config["clip_act"] is None else x.clamp(-self.config["clip_act"], self.config["clip_act"])

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        s, data, t = sigma[:, None, None, None], (c := self.config)["sigma_data"], c["concat_balance"]
        angles = torch.outer(sigma.log() / 4, self.w["unet.emb_fourier.freqs"]) + self.w["unet.emb_fourier.phases"]
        emb = self.layer("unet.emb_noise", angles.cos() * math.sqrt(2))
        if c["label_dim"] > 0:
            one_hot = (labels[:, None] == torch.arange(c["label_dim"], device=x.device)) * math.sqrt(c["label_dim"])
            emb = mp_sum(emb, self.layer("unet.emb_label", one_hot), c["label_balance"])
        emb, skips, v = F.silu(emb) * (1 / 0.596), [], data**2 + s**2
        h = torch.cat([1 / v.sqrt() * x, torch.ones_like(x[:, :1])], 1)
        for name in c["encoder"]:
            skips.append(h := self.layer(name, h) if name.endswith("_conv") else self.block(name, h, emb))
        for name in c["decoder"]:
            if "block" in name:
                n = math.sqrt((h.shape[1] + skips[-1].shape[1]) / ((1 - t) ** 2 + t**2))
                h = torch.cat([a * (n * w / math.sqrt(a.shape[1])) for a, w in ((h, 1 - t), (skips.pop(), t))], 1)
            h = self.block(name, h, emb)
        return data**2 / v * x + s * data / v.sqrt() * self.layer("unet.out_conv", h, self.w["unet.out_gain"])
