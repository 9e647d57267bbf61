"""The Inception score of a set of pictures (Salimans et al., 2016, "Improved Techniques for Training GANs")."""

import numpy as np
import torch
from torch import Tensor

SPLITS = 10
SEED = 2020  # of the order in which pictures are divided into parts, as in torch-fidelity


def inception_score(logits: Tensor, splits: int = SPLITS) -> tuple[float, float]:
    """Mean and standard deviation over parts of the pictures of exp(E KL(p(y|x) || p(y))), in float64.

    Args:
        logits: [N, K] of a classifier, N >= splits; of Inception those without the bias of the last layer.
        splits: parts; p(y) is the mean within each.
    """
    count = len(logits)
    assert count >= splits, (count, splits)
    order = torch.from_numpy(np.random.RandomState(SEED).permutation(count)).to(logits.device)
    scores = []
    for part in range(splits):
        log_p = logits[order[part * count // splits : (part + 1) * count // splits]].double().log_softmax(dim=1)
        p = log_p.exp()
        divergence = (p * (log_p - p.mean(dim=0).log())).sum(dim=1).mean()
        scores.append(float(divergence.exp()))
    return float(np.mean(scores)), float(np.std(scores))
