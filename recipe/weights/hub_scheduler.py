"""EDM2's deterministic sampler as a scheduler of diffusers; a file of its own, which needs torch and diffusers alone.

Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models" (arXiv 2206.00364), Algorithm 1.
"""

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.outputs import BaseOutput
from torch import Tensor


@dataclass
class EDM2SchedulerOutput(BaseOutput):
    """What to denoise next, [N, C, H, W]."""

    prev_sample: Tensor


class EDM2Scheduler(SchedulerMixin, ConfigMixin):
    """Heun's method over N noise levels: 2 N - 1 calls of the denoiser, whose result `step` takes.

    `timesteps` are the noise levels of these calls, in order. The state has the dtype of the noise that it begins with.
    """

    config_name = "scheduler_config.json"
    order = 2

    @register_to_config
    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0):
        self.init_noise_sigma = sigma_max
        self.set_timesteps(32)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Set the noise levels: from sigma_max to sigma_min, and then 0 (eq. 5)."""
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps {num_inference_steps}: must be at least 1")
        self.num_inference_steps = num_inference_steps
        fraction = torch.arange(num_inference_steps, dtype=torch.float64) / max(num_inference_steps - 1, 1)
        top, bottom = (self.config[name] ** (1 / self.config["rho"]) for name in ("sigma_max", "sigma_min"))
        levels = (top + fraction * (bottom - top)) ** self.config["rho"]
        self.sigmas = torch.cat([levels, torch.zeros(1, dtype=torch.float64)]).to(torch.float32).to(device)
        self.timesteps = torch.cat([self.sigmas[:1], self.sigmas[1:-1].repeat_interleave(2)])
        self._done = 0
        self._start: tuple[Tensor, Tensor] | None = None

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        return sample

    def step(
        self, model_output: Tensor, timestep: Tensor | float, sample: Tensor, return_dict: bool = True
    ) -> EDM2SchedulerOutput | tuple[Tensor]:
        """Go on from `sample`, which was denoised to `model_output` at the noise level `timestep`.

        Calls are in the order of `timesteps`: the first of each step goes along the slope, the second corrects it.
        """
        sigma, sigma_next = self.sigmas[self._done], self.sigmas[self._done + 1]
        if self._start is None:
            slope = (sample - model_output.to(sample.dtype)) / sigma
            found = sample + (sigma_next - sigma) * slope
            if sigma_next > 0:
                self._start = sample, slope
            else:
                self._done += 1
        else:
            start, slope = self._start
            slope_next = (sample - model_output.to(sample.dtype)) / sigma_next
            found = start + (sigma_next - sigma) * (slope + slope_next) / 2
            self._start, self._done = None, self._done + 1
        return EDM2SchedulerOutput(prev_sample=found) if return_dict else (found,)
