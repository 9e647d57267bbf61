"""UniPC: a multistep predictor, and a corrector that costs nothing (Zhao et al. 2023, arXiv 2302.04867)."""

import torch
from torch import Tensor

from recipe.edm2.samplers.exponential import Denoised, log_snrs, step
from recipe.edm2.samplers.schedule import Denoise


@torch.no_grad()
def unipc(
    denoise: Denoise,
    noise: Tensor,
    sigmas: Tensor,
    order: int = 2,
) -> Tensor:
    """Draw images by UniPC with data prediction and B(h) = expm1(h) (bh2).

    Calls `denoise` once for each noise level above 0.

    The denoised image of the predicted x both corrects this x (UniC, one point more than the predictor had) and serves
    the next predictor (UniP), so that the order is one above the predictor's (Algorithms 1 and 2, Theorem 3.1). The
    first steps have fewer images to go by, and are of lower order. The last step, to sigma 0, is the denoised image.

    Args:
        denoise, noise, sigmas: as of `heun`.
        order: of the predictor, 1 to 3; the paper advises 2 with strong guidance, else 3.

    Raises:
        ValueError: another order.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order {order} is not 1, 2 or 3")
    log_snr, sigmas = log_snrs(sigmas), sigmas.to(noise)
    x = noise * sigmas[0]
    predicted = x
    known: list[Denoised] = []
    for index in range(len(sigmas) - 1):
        new = Denoised(log_snr[index], denoise(predicted, sigmas[index]).to(x.dtype))
        if known:
            points = [known[0], new, *known[1:]]  # the polynomial of the step that led here, and its end
            x = step(x, log_snr[index] - log_snr[index - 1], points, rule="midpoint")
        known = [new, *known][:order]
        predicted = step(x, log_snr[index + 1] - log_snr[index], known, rule="midpoint")
    return predicted
