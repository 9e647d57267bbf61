"""The augmentation: exact where it can be, like an independent implementation elsewhere, and the same however split.

The independent implementation is SciPy's affine_transform with cubic splines, on images of few low frequencies.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composer.core import Algorithm, Event
from scipy import fft, ndimage
from torch import Tensor

from helpers.commands import train_arguments
from helpers.small_snapshots import NETWORK
from helpers.training import Examples, fit, flat
from recipe.configuration.reader import read_config
from recipe.configuration.schema import Loss
from recipe.edm2 import rng
from recipe.edm2.augment import (
    CONDITIONS,
    SCALE_STD,
    SYM6,
    TRANSLATION_STD,
    Augmentation,
    Transforms,
    apply,
    augment,
    draw_transforms,
    enlarge,
    mirror,
    reduce,
    resample,
)
from recipe.edm2.images import to_network
from recipe.edm2.networks.precond import Precond
from recipe.training.algorithms import ForcedWeightNorm, InverseSqrtLR, PowerEMA, ScrubGradients, training_algorithms
from recipe.training.initial_weights import match
from recipe.training.inputs import ExampleInputs, LoadedPixels
from recipe.training.model import DiffusionModel

SIZE = 32
EVERYTHING = Augmentation(p=1, x_flip=1, y_flip=1, scale=1, rotation=1, anisotropy=1, translation=1)
KINDS = ["x_flip", "y_flip", "scale", "rotation", "anisotropy", "translation"]
COLUMNS = dict(zip(KINDS, ([0], [1], [2], [3, 4], [5, 6], [7, 8]), strict=True))


def transforms(count: int = 1, **given: float | bool | list[float]) -> Transforms:
    """The same transform for each of some images; what is not given leaves them as they are."""
    still = {"x_flip": False, "y_flip": False, "scale": 1.0, "angle": 0.0, "stretch": 1.0, "direction": 0.0}
    values: dict[str, Any] = still | {"shift": [0.0, 0.0]} | given
    return Transforms(**{name: torch.tensor([value] * count) for name, value in values.items()})


def smooth_images(count: int, seed: int = 0) -> np.ndarray:
    """Sums of cosines with periods of at least 16 pixels, at most 1, and even around the edges [count, SIZE, SIZE]."""
    spectrum = np.zeros((count, SIZE, SIZE))
    spectrum[:, :4, :4] = np.random.default_rng(seed).normal(size=(count, 4, 4))
    images: Any = fft.idctn(spectrum, axes=(1, 2))
    return images / np.abs(images).max(axis=(1, 2), keepdims=True)


def rotation(angle: float) -> np.ndarray:
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def by_scipy(image: np.ndarray, forward: np.ndarray, shift: tuple[float, float] = (0, 0)) -> np.ndarray:
    """The image after its points (x, y), counted from the centre, moved to forward @ (x, y) + shift pixels."""
    swap = np.array([[0, 1], [1, 0]])  # SciPy counts rows first
    inverse = swap @ np.linalg.inv(forward) @ swap
    centre = np.full(2, (SIZE - 1) / 2)
    offset = centre - inverse @ (centre + np.array(shift)[::-1])
    return ndimage.affine_transform(image, inverse, offset, order=3, mode="reflect")  # pyright: ignore


STRETCH = rotation(0.7) @ np.diag([1.3, 1 / 1.3]) @ rotation(-0.7)
CASES: dict[str, tuple[dict[str, Any], np.ndarray, tuple[float, float]]] = {
    "enlarged": ({"scale": 1.3}, 1.3 * np.eye(2), (0, 0)),
    "reduced": ({"scale": 0.8}, 0.8 * np.eye(2), (0, 0)),
    "rotated": ({"angle": 0.6}, rotation(0.6), (0, 0)),
    "far rotated": ({"angle": -2.5}, rotation(-2.5), (0, 0)),
    "stretched along x": ({"stretch": 1.3}, np.diag([1.3, 1 / 1.3]), (0, 0)),
    "stretched": ({"stretch": 1.3, "direction": 0.7}, STRETCH, (0, 0)),
    "translated": ({"shift": [0.1, -0.23]}, np.eye(2), (0.1 * SIZE, -0.23 * SIZE)),
    "translated by more than itself": ({"shift": [1.6, 2.3]}, np.eye(2), (1.6 * SIZE, 2.3 * SIZE)),
    "all": (
        {"scale": 0.9, "angle": 1.1, "stretch": 1.3, "direction": 0.7, "shift": [-0.2, 0.05]},
        STRETCH @ rotation(1.1) * 0.9,
        (-0.2 * SIZE, 0.05 * SIZE),
    ),
}


@pytest.mark.parametrize(("given", "forward", "shift"), CASES.values(), ids=CASES)
def test_transform_is_that_of_scipy(given: dict[str, Any], forward: np.ndarray, shift: tuple[float, float]):
    images = smooth_images(3)
    ours = apply(torch.tensor(images, dtype=torch.float32)[:, None], transforms(3, **given))[:, 0].numpy()
    expected = np.stack([by_scipy(image, forward, shift) for image in images])
    # Linear interpolation between half pixels errs by up to |f''| / 32: 0.01 at a period of 16 * 0.8 pixels in both
    # directions. An image that stays as it is differs by far more.
    assert np.abs(ours - expected).max() < 0.01
    assert np.abs(images - expected).max() > 0.2


def test_filter_is_an_orthogonal_wavelet_with_six_vanishing_moments():
    taps = np.array(SYM6)
    assert taps.sum() == pytest.approx(math.sqrt(2), abs=1e-12)
    for shift in range(6):
        assert taps[: 12 - 2 * shift] @ taps[2 * shift :] == pytest.approx(float(shift == 0), abs=1e-11)
    for moment in range(6):
        assert ((-1) ** np.arange(12) * np.arange(12.0) ** moment) @ taps == pytest.approx(0, abs=1e-8)


def test_enlarging_and_reducing_is_the_identity():
    x = torch.randn(2, 3, 20, dtype=torch.float64)
    large = enlarge(x)
    around = torch.cat([large[..., -5:], large, large[..., :5]], dim=-1)
    assert torch.allclose(reduce(around), x, atol=1e-10)
    images = torch.randn(4, 3, 12, 20)
    assert (resample(images, transforms(4), torch.arange(4)) - images).abs().max() < 1e-5


def test_reduction_filters_what_would_alias():
    """A pattern of every other pixel, reduced to half, has a frequency that no pixel can show: it becomes grey."""
    images = torch.zeros(1, 1, SIZE, SIZE)
    images[..., ::2] = 1
    inside = apply(images, transforms(scale=0.5))[..., 12:20]  # the pattern breaks where the mirror images begin
    assert (inside - 0.5).abs().max() < 0.01


def test_flips_are_exact():
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(apply(images, transforms(2, x_flip=True)), images.flip(3))
    assert torch.equal(apply(images, transforms(2, y_flip=True)), images.flip(2))
    assert torch.equal(mirror(images, torch.tensor([True, False])), torch.stack([images[0].flip(2), images[1]]))


def test_probability_0_keeps_every_bit():
    images = torch.randn(64, 3, 8, 8)
    none = Augmentation(p=0, x_flip=1e8, y_flip=1, scale=1, rotation=1, anisotropy=1, translation=1)
    result, conditions = augment(images, torch.arange(64), none, seed=0, batch=0)
    assert torch.equal(result.view(torch.int32), images.view(torch.int32))
    assert torch.equal(conditions, torch.zeros(64, CONDITIONS))


@pytest.mark.parametrize("kind", KINDS)
def test_conditions_and_pixels_change_only_where_something_was_applied(kind: str):
    images, ids = torch.randn(512, 1, 8, 8), torch.arange(512)
    result, conditions = augment(images, ids, Augmentation(p=0.25, **{kind: 1.0}), seed=3, batch=7)
    others = [column for column in range(CONDITIONS) if column not in COLUMNS[kind]]
    assert not conditions[:, others].any()
    applied = conditions[:, COLUMNS[kind]].any(dim=1)
    same = (result == images).flatten(1).all(dim=1)
    assert torch.equal(same, ~applied)
    share = 0.25 * (0.5 if "flip" in kind else 1)
    assert abs(applied.float().mean() - share) < 5 * (share * (1 - share) / 512) ** 0.5


def test_conditions_tell_what_was_done():
    drawn = draw_transforms(EVERYTHING, seed=1, batch=2, ids=torch.arange(4096))
    conditions = drawn.conditions()
    assert conditions.shape == (4096, CONDITIONS) and conditions.dtype == torch.float32
    assert torch.equal(conditions[:, 0], drawn.x_flip.float())
    assert torch.equal(conditions[:, 1], drawn.y_flip.float())
    assert torch.allclose((SCALE_STD * conditions[:, 2]).exp2(), drawn.scale)
    assert torch.allclose(torch.atan2(conditions[:, 4], conditions[:, 3] + 1), drawn.angle, atol=1e-5)
    along = drawn.direction == 0
    assert torch.allclose((SCALE_STD * conditions[along, 5]).exp2(), drawn.stretch[along])
    assert torch.allclose(conditions[:, 5:7].norm(dim=1), (drawn.stretch.log2() / SCALE_STD).abs(), atol=1e-5)
    assert torch.allclose(conditions[:, 7:] * TRANSLATION_STD, drawn.shift)


def test_distribution_of_the_transforms():
    n = 1 << 14
    drawn = draw_transforms(EVERYTHING, seed=1, batch=2, ids=torch.arange(n))
    for flip in (drawn.x_flip, drawn.y_flip):
        assert abs(flip.float().mean() - 0.5) < 5 * 0.5 * n**-0.5
    for log in (drawn.scale.log2() / SCALE_STD, drawn.stretch.log2() / SCALE_STD, *(drawn.shift.T * 8)):
        assert abs(log.mean()) < 5 * n**-0.5
        assert abs(log.std() - 1) < 5 * (2 * n) ** -0.5
    assert abs((drawn.direction == 0).float().mean() - 0.5) < 5 * 0.5 * n**-0.5
    for angle in (drawn.angle, drawn.direction[drawn.direction != 0]):
        assert angle.abs().max() <= math.pi
        assert abs(angle.mean()) < 5 * math.pi / 3**0.5 * len(angle) ** -0.5
        assert abs(angle.abs().mean() - math.pi / 2) < 5 * math.pi / 12**0.5 * len(angle) ** -0.5
    columns = torch.stack([*drawn.conditions().T, drawn.angle])
    # No two of them are related, but for the angle and its own sine and cosine.
    correlations = torch.corrcoef(columns.double()).abs()
    correlations[9, 3:5] = correlations[3:5, 9] = 0
    assert (correlations - torch.eye(10)).max() < 6 * n**-0.5


def test_augmentation_of_an_image_depends_on_its_id_alone():
    images, ids = torch.randn(32, 3, 16, 16), torch.arange(100, 132)
    often = Augmentation(p=0.5, x_flip=1, y_flip=1, scale=1, rotation=1, anisotropy=1, translation=1)
    whole, conditions = augment(images, ids, often, seed=5, batch=9)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    permuted = augment(images[order], ids[order], often, seed=5, batch=9)
    assert torch.equal(permuted[0], whole[order]) and torch.equal(permuted[1], conditions[order])
    for size in (1, 2):
        parts = [
            augment(image, part, often, seed=5, batch=9)
            for image, part in zip(images.split(size), ids.split(size), strict=True)
        ]
        assert torch.equal(torch.cat([image for image, _ in parts]), whole)
        assert torch.equal(torch.cat([condition for _, condition in parts]), conditions)
    assert not torch.equal(augment(images, ids, often, seed=5, batch=10)[1], conditions)
    assert not torch.equal(augment(images, ids, often, seed=6, batch=9)[1], conditions)
    assert not torch.equal(augment(images, ids + 32, often, seed=5, batch=9)[1], conditions)


def augmented_network(**more: Any) -> Precond:
    net = Precond(**NETWORK, **more)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("gain"):
                parameter.fill_(0.7)
    return net


def test_untouched_images_see_the_network_without_augmentation():
    torch.manual_seed(0)
    conditioned = augmented_network(augment_dim=CONDITIONS)
    plain = augmented_network()
    plain.load_state_dict({name: value for name, value in conditioned.state_dict().items() if "augment" not in name})
    x, sigma, labels = torch.randn(4, 1, 8, 8), torch.rand(4) + 0.1, torch.arange(4)
    conditions = torch.zeros(4, CONDITIONS)
    alone = plain(x, sigma, labels)
    assert torch.equal(conditioned(x, sigma, labels, augment=conditions), alone)
    assert torch.equal(conditioned(x, sigma, labels), alone)  # as sampling calls it
    conditions[1, 0] = 1
    changed = (conditioned(x, sigma, labels, augment=conditions) != alone).flatten(1).any(dim=1)
    assert changed.tolist() == [False, True, False, False]


def test_conditions_have_no_effect_at_first():
    torch.manual_seed(0)
    net = Precond(**NETWORK, augment_dim=CONDITIONS)
    assert net.unet.emb_augment_gain.shape == (1,) and not net.unet.emb_augment_gain.any()
    assert not any("augment" in name for name, _ in Precond(**NETWORK).named_parameters())


def test_fine_tuning_with_and_without_augmentation():
    settings: list[dict[str, Any]] = [{"augment_dim": CONDITIONS}, {}]
    with_it, without = (
        {name: tuple(value.shape) for name, value in Precond(**NETWORK, **more).state_dict().items()}
        for more in settings
    )
    fresh = {"unet.emb_augment.weight", "unet.emb_augment_gain"}
    assert match(with_it, without, "x") == ({name: name for name in without}, fresh)
    assert match(without, with_it, "x") == ({name: name for name in without}, set())


def test_mirrored_and_augmented_from_the_configuration():
    overrides = ["seed=1", "data.x_flip=true", "augment={p: 0.5, scale: 0.25}"]
    config = read_config(train_arguments(Path("none"), Path("none"), *overrides))
    algorithms = training_algorithms(config, rank=0)
    (inputs,) = (algorithm for algorithm in algorithms if isinstance(algorithm, ExampleInputs))
    assert inputs.augmentation == Augmentation(0.5, 1e8, 1.0, 0.25, 1.0, 1.0, 1.0)
    ids, images = torch.arange(64), torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8)
    loaded: LoadedPixels = {"image": images, "id": ids, "label": ids % 10}
    batch = inputs.draw(loaded, 3)
    assert batch.get("augment", torch.empty(0)).shape == (64, CONDITIONS)
    assert batch["image"].dtype == torch.float32
    plain = ExampleInputs(1, config.loss, x_flip=True).draw(loaded, 3)
    mirrored = (plain["image"] == to_network(images.flip(3))).flatten(1).all(dim=1)
    assert torch.equal(mirrored, rng.uniform(1, rng.X_FLIP, 3, ids) <= 0.5)
    assert 16 < int(mirrored.sum()) < 48
    assert "augment" not in plain


class Shown(Algorithm):
    """Notes the images and conditions that the network is shown, by batch and id."""

    def __init__(self):
        self.images: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def match(self, event: Event, state: Any) -> bool:
        return event == Event.BEFORE_FORWARD

    def apply(self, event: Event, state: Any, logger: Any) -> None:
        batch = state.batch
        for id, image, conditions in zip(batch["id"], batch["image"], batch["augment"], strict=True):
            self.images[state.timestamp.batch.value, int(id)] = (image.clone(), conditions.clone())


def trained(microbatch: int | None) -> tuple[DiffusionModel, dict[str, list[float]], Shown]:
    torch.manual_seed(3)
    model = DiffusionModel(Precond(**NETWORK, augment_dim=CONDITIONS), [0.05, 0.1])
    examples = Examples(torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8), torch.arange(64) % 10)
    shown = Shown()
    algorithms: list[Algorithm] = [
        ForcedWeightNorm(),
        InverseSqrtLR(16, ref_lr=0.01, ref_batches=8, rampup_nimg=32),
        ExampleInputs(5, Loss(), x_flip=True, augmentation=Augmentation(0.3, 1, 1, 1, 1, 1, 1)),
        shown,
        ScrubGradients(),
        PowerEMA(),
    ]
    logged = fit(model, examples, algorithms, 16, 4, microbatch=microbatch)
    return model, logged, shown


def test_same_images_through_a_trainer_whatever_the_microbatch():
    whole, reference, shown = trained(None)
    assert len(shown.images) == 4 * 16
    assert whole.net.unet.emb_augment_gain.item() != 0
    for microbatch in (1, 2):
        model, logged, others = trained(microbatch)
        assert others.images.keys() == shown.images.keys()
        for key, (image, conditions) in shown.images.items():
            assert torch.equal(others.images[key][0], image) and torch.equal(others.images[key][1], conditions)
        assert logged["loss/train/total"] == pytest.approx(reference["loss/train/total"], rel=1e-4)
        assert float((flat(model.net) - flat(whole.net)).norm() / flat(whole.net).norm()) < 1e-3


def test_keys_by_position_would_be_noticed(monkeypatch: pytest.MonkeyPatch):
    """The test above can fail: it does if an image's place in its microbatch enters."""
    draw_images = ExampleInputs.draw_images

    def by_position(self: ExampleInputs, loaded: Any, batch_number: int) -> tuple[Tensor, Tensor | None]:
        return draw_images(self, loaded | {"id": torch.arange(len(loaded["id"]))}, batch_number)

    monkeypatch.setattr(ExampleInputs, "draw_images", by_position)
    shown, others = trained(None)[2], trained(1)[2]
    assert not all(torch.equal(others.images[key][0], image) for key, (image, _) in shown.images.items())


def test_one_sample_twice_in_a_batch_is_augmented_differently():
    """A second draw of a sample in an epoch has another id."""
    image = torch.randn(1, 1, 8, 8).expand(2, -1, -1, -1)
    conditions = augment(image, torch.tensor([7, 7 + 5000]), EVERYTHING, seed=0, batch=0)[1]
    assert not torch.equal(conditions[0], conditions[1])
