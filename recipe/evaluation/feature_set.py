"""What is kept of the features of a set of pictures: the two moments, and for some metrics the features themselves."""

from dataclasses import dataclass

from torch import Tensor

from recipe.command_line import UserError


class EvaluationError(UserError):
    """Pictures, statistics or networks that cannot be measured as asked; the message names what, the rule and the
    fix."""


@dataclass(frozen=True)
class FeatureSet:
    """The features of a set of pictures, all tensors on the CPU.

    Attributes:
        count: number of pictures N; None = not known, of a file of another origin.
        mean: [D] in float64.
        covariance: [D, D] in float64, unbiased.
        features: [N, D] in the order of the pictures' numbers; None = not kept.
        logits: [N, K] of a classifier, likewise.
    """

    count: int | None
    mean: Tensor
    covariance: Tensor
    features: Tensor | None = None
    logits: Tensor | None = None
