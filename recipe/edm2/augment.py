"""Non-leaking augmentation: random geometry that is a condition of the network (Karras et al. 2022, Appendix F.2).

An image is transformed with some probability and the network is conditioned on what was done to it. Sampling passes
zeros, the condition of an untouched image, so that samples look like untouched images. The transforms and their
anti-aliased resampling are those of StyleGAN2-ADA (Karras et al. 2020, Appendix B): the image, extended by its mirror
images, is enlarged twice with an orthogonal wavelet, sampled once through all transforms together, and reduced again.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from recipe.edm2 import rng

CONDITIONS = 9  # x-flip, y-flip, log scale, cos - 1 and sin of the rotation, 2 of the anisotropy, 2 of the translation
SCALE_STD = 0.2  # of log2 of the scale, and of the stretch
TRANSLATION_STD = 1 / 8  # of the image's width and height

# The Symlet with 6 vanishing moments (Daubechies, "Ten lectures on wavelets", Table 6.3), sum sqrt(2). Its shifts by
# multiples of 2 are orthonormal: enlarging and reducing by it is the identity.
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
_MARGIN = 5  # taps before an image's first pixel
# The filter is not symmetric: the centre of its weights, not its middle, keeps smooth images where they are.
_CENTRE = sum(tap * weight for tap, weight in enumerate(SYM6)) / sum(SYM6) - _MARGIN

# Which of the numbers drawn for an image serves what. Never renumber: results would change.
(
    _IF_X_FLIP, _X_FLIP, _IF_Y_FLIP, _Y_FLIP, _IF_SCALE, _IF_ROTATION, _ROTATION, _IF_ANISOTROPY, _DIRECTION,
    _IF_DIRECTION, _IF_TRANSLATION,
) = range(11)  # fmt: skip
_NORMALS = 12  # from here on, in pairs: scale and stretch, horizontal and vertical translation
_COUNT = 16


@dataclass(frozen=True)
class Augmentation:
    """How often each transform is applied: with probability p times its multiplier, or always if that is above 1.

    A flip that is applied mirrors half of the images. A multiplier of 0 turns a transform off.
    """

    p: float
    x_flip: float = 0.0
    y_flip: float = 0.0
    scale: float = 0.0
    rotation: float = 0.0
    anisotropy: float = 0.0
    translation: float = 0.0


@dataclass(frozen=True)
class Transforms:
    """What happens to each of N images, where (x, y) are pixels to the right of and below the centre.

    Flips come first; then an image's point c moves to T A R S c: scaled, rotated, stretched, translated.

    Attributes:
        x_flip, y_flip: bool [N]: mirrored left-right, upside down.
        scale: [N], above 1 enlarges.
        angle: [N] in radians, from the x axis towards the y axis.
        stretch: [N]: lengths along `direction` are multiplied by it, those across it divided.
        direction: [N] in radians.
        shift: [N, 2] in widths and heights of the image.
    """

    x_flip: Tensor
    y_flip: Tensor
    scale: Tensor
    angle: Tensor
    stretch: Tensor
    direction: Tensor
    shift: Tensor

    def conditions(self) -> Tensor:
        """The network's conditions, float32 [N, 9]; exactly 0 for each transform that was not applied."""
        log_scale, log_stretch = self.scale.log2() / SCALE_STD, self.stretch.log2() / SCALE_STD
        shift = self.shift / TRANSLATION_STD
        return torch.stack(
            [
                self.x_flip.float(),
                self.y_flip.float(),
                log_scale,
                self.angle.cos() - 1,
                self.angle.sin(),
                log_stretch * self.direction.cos(),
                log_stretch * self.direction.sin(),
                shift[:, 0],
                shift[:, 1],
            ],
            dim=1,
        )

    def resampled(self) -> Tensor:
        """Which images, bool [N], need more than exact flips."""
        return (self.scale != 1) | (self.angle != 0) | (self.stretch != 1) | (self.shift != 0).any(dim=1)

    def inverse(self) -> Tensor:
        """[N, 2, 2]: S^-1 R^-1 A^-1, which takes a point of the result, its translation undone, back to the image."""
        # Rotations by -angle, direction and -direction around the diagonal one of the stretch; written out, because a
        # matrix product could round differently with N, and coarsely in TF32.
        along, across = 1 / (self.stretch * self.scale), self.stretch / self.scale
        cos_a, sin_a = (self.direction - self.angle).cos(), (self.direction - self.angle).sin()
        cos_b, sin_b = self.direction.cos(), self.direction.sin()
        rows = [
            along * cos_a * cos_b + across * sin_a * sin_b,
            along * cos_a * sin_b - across * sin_a * cos_b,
            along * sin_a * cos_b - across * cos_a * sin_b,
            along * sin_a * sin_b + across * cos_a * cos_b,
        ]
        return torch.stack(rows, dim=1).reshape(-1, 2, 2)


def draw_transforms(augmentation: Augmentation, seed: int, batch: int, ids: Tensor) -> Transforms:
    """Random transforms for the images `ids` [N], a function of (seed, batch, id) alone.

    As in EDM's Table 6: log2 of the scale and of the stretch ~ 0.2 N(0, 1), the rotation is uniform, the translation
    ~ N(0, 1) / 8 of the image. The direction of the stretch is horizontal in half of the images, else uniform, as in
    EDM's code.
    """
    u = rng.uniform(seed, rng.AUGMENT, batch, ids, (_COUNT,))
    z = rng.box_muller(u[:, _NORMALS:])

    def applied(column: int, multiplier: float) -> Tensor:
        return u[:, column] <= augmentation.p * multiplier

    def two_to(normal: Tensor) -> Tensor:
        return (math.log(2) * SCALE_STD * normal).exp()  # exp2 rounds differently in vectors and alone

    def where(condition: Tensor, value: Tensor, otherwise: float = 0.0) -> Tensor:
        return torch.where(condition, value, torch.full_like(value, otherwise))

    angle, direction = (math.pi * (2 * u[:, column] - 1) for column in (_ROTATION, _DIRECTION))
    stretched = applied(_IF_ANISOTROPY, augmentation.anisotropy)
    return Transforms(
        x_flip=applied(_IF_X_FLIP, augmentation.x_flip) & (u[:, _X_FLIP] <= 0.5),
        y_flip=applied(_IF_Y_FLIP, augmentation.y_flip) & (u[:, _Y_FLIP] <= 0.5),
        scale=where(applied(_IF_SCALE, augmentation.scale), two_to(z[:, 0]), 1.0),
        angle=where(applied(_IF_ROTATION, augmentation.rotation), angle),
        stretch=where(stretched, two_to(z[:, 1]), 1.0),
        direction=where(stretched & (u[:, _IF_DIRECTION] <= 0.5), direction),
        shift=where(applied(_IF_TRANSLATION, augmentation.translation)[:, None], TRANSLATION_STD * z[:, 2:]),
    )


def augment(images: Tensor, ids: Tensor, augmentation: Augmentation, seed: int, batch: int) -> tuple[Tensor, Tensor]:
    """Transform float `images` [N, C, H, W] at random; returns them and the network's conditions, float32 [N, 9].

    Only images that are scaled, rotated, stretched or translated are resampled; flips are exact, and an image that no
    transform applies to keeps its bits.
    """
    transforms = draw_transforms(augmentation, seed, batch, ids)
    return apply(images, transforms), transforms.conditions()


def apply(images: Tensor, transforms: Transforms) -> Tensor:
    """`images` [N, C, H, W] after their transforms, in the same dtype and size."""
    images = mirror(images, transforms.x_flip)
    images = torch.where(transforms.y_flip[:, None, None, None], images.flip(2), images)
    chosen = transforms.resampled().nonzero().squeeze(1)
    if len(chosen) > 0:
        images = images.index_copy(0, chosen, resample(images[chosen], transforms, chosen))
    return images


def mirror(images: Tensor, which: Tensor) -> Tensor:
    """`images` [N, C, H, W] with those mirrored left-right that `which`, bool [N], names."""
    return torch.where(which[:, None, None, None], images.flip(3), images)


def resample(images: Tensor, transforms: Transforms, chosen: Tensor) -> Tensor:
    """`images` [M, C, H, W] through the geometric transforms of `chosen` [M], whichever they are."""
    height, width = images.shape[2:]
    # One period of the image and its mirror images, which continue it without an edge in all directions.
    period = torch.cat([images, images.flip(3)], dim=3)
    period = torch.cat([period, period.flip(2)], dim=2)
    large = enlarge(enlarge(period).mT).mT  # (M, C, 4H, 4W)
    large = F.pad(large, (0, 1, 0, 1), mode="circular")  # so that the last pixel has a neighbour
    # Pixel k of the enlarged image lies at (k - _CENTRE) / 2 of the image's pixels. Both axes count from the centre.
    centre = torch.tensor([(width - 1) / 2, (height - 1) / 2], device=images.device)
    x, y = (
        (torch.arange(-_MARGIN, 2 * size + _MARGIN, device=images.device) - _CENTRE) / 2 - (size - 1) / 2
        for size in (width, height)
    )
    points = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # (2H + 10, 2W + 10, 2) of the result
    shift = transforms.shift[chosen] * torch.tensor([width, height], device=images.device)
    unshifted = points - shift[:, None, None]
    inverse = transforms.inverse()[chosen, None, None]  # (M, 1, 1, 2, 2)
    source = inverse[..., 0] * unshifted[..., :1] + inverse[..., 1] * unshifted[..., 1:] + centre
    periods = torch.tensor([4 * width, 4 * height], device=images.device)
    pixels = (2 * source + _CENTRE).remainder(periods)
    sampled = F.grid_sample(large, (pixels / periods * 2 - 1).to(large.dtype), align_corners=True)
    return reduce(reduce(sampled).mT).mT


def enlarge(x: Tensor) -> Tensor:
    """Twice as many samples along the last dimension, P -> 2P, of signals with that period."""
    padded = torch.cat([x[..., -3:], x, x[..., :3]], dim=-1)  # sample i is at i + 3
    phases = []
    for parity in (0, 1):  # sample 2i + parity takes tap (parity + 5 - 2j) of sample i + j
        offsets = [j for j in range(-3, 4) if 0 <= parity + _MARGIN - 2 * j < len(SYM6)]
        taps = [math.sqrt(2) * SYM6[parity + _MARGIN - 2 * j] for j in offsets]
        phases.append(_weighted_sum([padded[..., 3 + j : 3 + j + x.shape[-1]] for j in offsets], taps))
    return torch.stack(phases, dim=-1).flatten(-2)


def reduce(x: Tensor) -> Tensor:
    """Half as many samples along the last dimension, 2W + 10 -> W: the adjoint of `enlarge`, with margins of 5."""
    width = (x.shape[-1] - 2 * _MARGIN) // 2
    taps = [tap / math.sqrt(2) for tap in SYM6]
    return _weighted_sum([x[..., t : t + 2 * width - 1 : 2] for t in range(len(taps))], taps)


def _weighted_sum(terms: list[Tensor], weights: list[float]) -> Tensor:
    # Term by term, and not as a convolution: its rounding could depend on how many images there are.
    total = terms[0] * weights[0]
    for term, weight in zip(terms[1:], weights[1:], strict=True):
        total = total.add(term, alpha=weight)
    return total
