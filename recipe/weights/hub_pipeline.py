"""Images from EDM2 by diffusers; a file of its own, which needs torch and diffusers alone.

    pipe = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)
    pipe(class_labels=[207, 360], generator=torch.manual_seed(0)).images[0].save("image.png")

A model of latents gives pictures with its autoencoder alone: from_pretrained(FOLDER, vae=AutoencoderKL..., ...).
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


class EDM2Pipeline(DiffusionPipeline):
    """Draws images of classes, or without."""

    _optional_components = ["vae"]  # noqa: RUF012, as diffusers has it

    def __init__(self, unet, scheduler, vae=None, auto_map: dict | None = None):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae)
        self.register_to_config(auto_map=auto_map)  # of AutoModel, which looks for it in model_index.json

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | Sequence[int] | Tensor | None = None,
        num_images: int = 1,
        num_inference_steps: int = 32,
        guidance_scale: float = 1.0,
        guide=None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Draw one image for each class.

        Args:
            class_labels: ids, -1 = unconditional; one = of all images; None = unconditional.
            num_images: without a list of classes.
            num_inference_steps: noise levels; the denoiser is called twice for each but the last.
            guidance_scale: 1 = none, D_guide + scale * (D - D_guide).
            guide: a weaker EDM2Model; None = the same without classes, if it was trained with label dropout.
            generator: of the noise.
            latents: unit noise [N, C, H, W] in place of the generator's.
            output_type: pil, np ([N, H, W, C] in [0, 1]), pt ([N, C, H, W] in [0, 1]) or latent (of the denoiser).
        """
        config, device = self.unet.config, self.unet.device
        labels = self._labels(class_labels, num_images if latents is None else len(latents), device)
        if latents is None:
            shape = (len(labels), config["img_channels"], config["img_resolution"], config["img_resolution"])
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        latent = config["latent_mean"] is not None or config["img_channels"] not in (1, 3)
        if output_type != "latent" and latent and (self.vae is None or config["latent_mean"] is None):
            raise ValueError("makes latents: give the pipeline their autoencoder (vae=...), or output_type='latent'")
        self.scheduler.set_timesteps(num_inference_steps, device)
        x = latents.to(device) * self.scheduler.init_noise_sigma
        for sigma in self.progress_bar(self.scheduler.timesteps):
            denoised = self.unet(x, sigma, labels).sample
            if guidance_scale != 1:
                weaker = self.unet(x, sigma).sample if guide is None else guide(x, sigma, labels).sample
                denoised = torch.lerp(weaker, denoised, guidance_scale)
            x = self.scheduler.step(denoised, sigma, x).prev_sample
        images: Any = x if output_type == "latent" else self._pictures(x, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _labels(self, given: int | Sequence[int] | Tensor | None, count: int, device: torch.device) -> Tensor:
        given = -1 if given is None else given
        labels = torch.as_tensor(given, dtype=torch.int64, device=device).flatten()
        labels = labels.expand(count) if labels.numel() == 1 else labels
        limit = self.unet.config["label_dim"]
        if labels.min() < -1 or labels.max() >= limit:
            raise ValueError(f"class_labels {labels.tolist()}: must be -1 to {limit - 1}")
        return labels

    def _pictures(self, x: Tensor, output_type: str) -> Any:
        mean, std = self.unet.config["latent_mean"], self.unet.config["latent_std"]
        if mean is not None:
            mean, std = (torch.tensor(values, device=x.device)[:, None, None] for values in (mean, std))
            x = self.vae.decode((x * std / 0.5 + mean).to(self.vae.dtype)).sample.float()  # in [0, 1], as EDM2 has it
        else:
            x = x / 2 + 0.5
        x = x.clamp(0, 1).cpu()
        if output_type == "pt":
            return x
        arrays = x.permute(0, 2, 3, 1).float().numpy()
        return arrays if output_type == "np" else self.numpy_to_pil(arrays)
