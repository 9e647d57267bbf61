"""Guidance: extrapolating from a weaker denoiser through a better one."""

import torch

from recipe.edm2.samplers.schedule import Denoise


def guided(denoise: Denoise, guide: Denoise, guidance: float) -> Denoise:
    """The denoiser guidance * D + (1 - guidance) * D_guide; guidance 1 is `denoise` and never calls `guide`."""
    if guidance == 1:
        return denoise
    return lambda x, sigma: torch.lerp(guide(x, sigma), denoise(x, sigma), guidance)
