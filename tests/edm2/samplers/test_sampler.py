"""The sampler on Gaussian data, whose denoiser is known, and images as functions of their seeds and labels alone."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from recipe.edm2 import rng
from recipe.edm2.networks.precond import Precond
from recipe.edm2.samplers.generate import SAMPLERS, SamplerSettings, denoiser, generate, generate_batches
from recipe.edm2.samplers.guidance import guided
from recipe.edm2.samplers.heun import heun
from recipe.edm2.samplers.names import Name
from recipe.edm2.samplers.restart import restart
from recipe.edm2.samplers.schedule import sigma_steps

STD = 0.5


def gaussian_denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """E[y | x] for data from N(0, STD^2)."""
    return x * STD**2 / (STD**2 + sigma**2)


def small_network(seed: int = 0, label_dim: int = 10) -> Precond:
    torch.manual_seed(seed)
    size = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
    net = Precond(8, 1, label_dim, **size, channels_per_head=16).eval().requires_grad_(False)
    for name, parameter in net.named_parameters():
        if name.endswith("gain"):
            parameter.fill_(1)
    return net


@pytest.fixture(scope="module")
def net() -> Precond:
    return small_network()


@pytest.mark.parametrize("num_steps", [1, 2, 18, 64])
def test_sigma_steps(num_steps: int):
    sigmas = sigma_steps(num_steps, 0.01, 50.0, 5.0)
    assert sigmas.dtype == torch.float64
    assert sigmas.shape == (num_steps + 1,)
    assert float(sigmas[0]) == pytest.approx(50, rel=1e-12)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()
    if num_steps > 1:
        assert float(sigmas[-2]) == pytest.approx(0.01, rel=1e-12)
        roots = sigmas[:-1] ** (1 / 5)
        torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(num_steps - 1), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "num_steps 0 is below 1"),
        ((8, 0.0, 80.0), "sigma_min 0.0 and sigma_max 80.0"),
        ((8, -1.0, 80.0), "sigma_min -1.0"),
        ((8, 80.0, 80.0), "sigma_min 80.0 and sigma_max 80.0"),
        ((8, 90.0, 80.0), "sigma_min 90.0 and sigma_max 80.0"),
        ((8, math.nan, 80.0), "sigma_min nan"),
        ((8, 0.002, 80.0, 0.0), "rho 0.0 is not above 0"),
        ((8, 0.002, 80.0, -7.0), "rho -7.0 is not above 0"),
    ],
)
def test_bad_sigma_steps(arguments: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        sigma_steps(*arguments)


@pytest.mark.parametrize("S_churn", [0.0, 40.0])
@pytest.mark.parametrize("num_steps", [1, 2, 32])
def test_number_of_denoiser_calls(num_steps: int, S_churn: float):
    seen: list[Tensor] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(sigma)
        return gaussian_denoiser(x, sigma)

    heun(denoise, torch.ones(1, 1, 2, 2), sigma_steps(num_steps), S_churn=S_churn)
    assert len(seen) == 2 * num_steps - 1
    assert all(sigma.ndim == 0 and sigma > 0 for sigma in seen)


def test_std_of_gaussian_samples():
    """For this denoiser the sampler is linear, so that one number tells the standard deviation of all samples."""
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    errors = [
        abs(heun(gaussian_denoiser, one, sigma_steps(num_steps)).item() / STD - 1) for num_steps in (32, 64, 128, 256)
    ]
    assert errors[-1] <= 5e-4
    for coarse, fine in itertools.pairwise(errors):
        assert 3.5 <= coarse / fine <= 5  # second order: twice the steps, a quarter of the error
    noise = torch.randn(20_000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    samples = heun(gaussian_denoiser, noise, sigma_steps(64))
    assert samples.dtype == torch.float32
    assert float(samples.std()) == pytest.approx(STD, rel=0.02)  # 0.4% of method and 3 standard errors of 0.5%


@pytest.mark.parametrize("limits", [{}, {"S_min": 0.05, "S_max": 50.0}])
def test_std_of_gaussian_samples_with_churn(limits: dict[str, float]):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(40_000, 1, 1, 1, generator=generator, dtype=torch.float64)
    drawn = []

    def randn_like(x: Tensor) -> Tensor:
        drawn.append(torch.randn(x.shape, generator=generator, dtype=x.dtype))
        return drawn[-1]

    samples = heun(gaussian_denoiser, noise, sigma_steps(128), S_churn=40, randn_like=randn_like, **limits)
    # 0.8% of method, and 3 standard errors of 0.35%.
    assert float(samples.std()) == pytest.approx(STD, rel=0.018)
    sigmas = sigma_steps(128)[:-1]
    churned = (sigmas >= limits.get("S_min", 0)) & (sigmas <= limits.get("S_max", math.inf))
    assert len(drawn) == int(churned.sum())
    still = heun(gaussian_denoiser, noise, sigma_steps(128))
    correlation = torch.corrcoef(torch.stack([samples.flatten(), still.flatten()]))[0, 1]
    assert correlation < 0.9  # the added noise does replace the first


def test_one_step_is_the_denoised_noise():
    noise = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    sample = heun(gaussian_denoiser, noise, sigma_steps(1, sigma_max=5.0))
    torch.testing.assert_close(sample, gaussian_denoiser(5 * noise, torch.tensor(5.0)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("S_churn", "increase"), [(0.25, 0.25), (9.0, math.sqrt(2) - 1)])
def test_one_step_with_churn(S_churn: float, increase: float):
    noise, added = torch.randn(2, 3, 1, 2, 2, dtype=torch.float64)
    settings = dict(S_churn=S_churn, S_noise=1.5, randn_like=lambda x: added)
    sample = heun(gaussian_denoiser, noise, sigma_steps(1, sigma_max=5.0), **settings)  # pyright: ignore
    higher = torch.tensor(5 * (1 + increase), dtype=torch.float64)
    noisier = 5 * noise + (higher**2 - 25).sqrt() * 1.5 * added
    torch.testing.assert_close(sample, gaussian_denoiser(noisier, higher), rtol=1e-9, atol=1e-12)


def test_guidance_of_1_never_calls_the_guide():
    def refuse(x: Tensor, sigma: Tensor) -> Tensor:
        raise AssertionError("the guide was called")

    assert guided(gaussian_denoiser, refuse, 1.0) is gaussian_denoiser
    heun(guided(gaussian_denoiser, refuse, 1), torch.ones(1, 1, 1, 1), sigma_steps(4))
    with pytest.raises(AssertionError):
        guided(gaussian_denoiser, refuse, 1.1)(torch.ones(1), torch.ones(()))


@pytest.mark.parametrize("guidance", [0.0, 0.5, 2.5])
def test_guidance_extrapolates_from_the_guide(guidance: float):
    x, sigma = torch.randn(5), torch.tensor(0.7)
    mixed = guided(lambda x, sigma: 3 * x + sigma, lambda x, sigma: x - sigma, guidance)
    expected = guidance * (3 * x + sigma) + (1 - guidance) * (x - sigma)
    torch.testing.assert_close(mixed(x, sigma), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        SamplerSettings(num_steps=6),
        SamplerSettings(num_steps=6, S_churn=20),
        SamplerSettings(6, guidance=1.5),
        *(SamplerSettings(4, sampler=name) for name in SAMPLERS if name != "heun"),
    ],
    ids=["deterministic", "churn", "guidance", *(name for name in SAMPLERS if name != "heun")],
)
def test_image_depends_on_its_seed_and_label_alone(net: Precond, settings: SamplerSettings):
    seeds, labels = [3, 11, 0, 2**40, 7, 3, 3], [1, -1, 9, 0, 4, 1, 2]
    whole = generate(net, torch.tensor(seeds), torch.tensor(labels), settings)
    assert whole.shape == (7, 1, 8, 8)
    assert whole.dtype == torch.float32
    assert whole.std() > 0.1
    for batch_size in (1, 3, 7, 100):
        batches = list(generate_batches(net, seeds, labels, settings, batch_size))
        assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
        torch.testing.assert_close(torch.cat(batches), whole, rtol=0, atol=1e-4)
    order = [4, 0, 6, 2, 5, 1, 3]
    shuffled = generate(net, torch.tensor(seeds)[order], torch.tensor(labels)[order], settings)
    torch.testing.assert_close(shuffled, whole[order], rtol=0, atol=1e-4)
    torch.testing.assert_close(whole[0], whole[5], rtol=0, atol=1e-4)
    flat = whole[[0, 1, 2, 3, 4, 6]].flatten(1)
    distances = torch.cdist(flat, flat) + torch.eye(6) * 1e3
    assert distances.min() > 0.1  # another seed, or the same seed and another label, is another image


def test_churn_draws_new_noise_at_each_step(net: Precond):
    still = generate(net, torch.tensor([5]), torch.tensor([1]), SamplerSettings(6))
    churned = generate(net, torch.tensor([5]), torch.tensor([1]), SamplerSettings(6, S_churn=20))
    assert (still - churned).norm() > 0.1 * still.norm()
    seeds, ids = torch.tensor([5]), torch.tensor([0])
    noise = [rng.normal(seeds, rng.SAMPLE_NOISE, 0, ids, (1, 8, 8))]
    noise += [rng.normal(seeds, rng.SAMPLE_CHURN, step, ids, (1, 8, 8)) for step in range(1, 7)]
    later = iter(noise[1:])
    expected = heun(
        lambda x, sigma: net(x, sigma, torch.tensor([1])),  # pyright: ignore[reportArgumentType]
        noise[0],
        sigma_steps(6),
        S_churn=20,
        randn_like=lambda x: next(later),
    )
    torch.testing.assert_close(churned, expected, rtol=0, atol=1e-5)
    assert len({round(float(value.sum()), 4) for value in noise}) == 7


def test_guidance_without_a_guide_is_against_the_unlabelled_network(net: Precond):
    seeds, labels = torch.arange(3), torch.tensor([2, 5, 8])
    unlabelled = generate(net, seeds, torch.full((3,), -1), SamplerSettings(6))
    labelled = generate(net, seeds, labels, SamplerSettings(6))
    assert (labelled - unlabelled).norm() > 0.01 * labelled.norm()
    none = generate(net, seeds, labels, SamplerSettings(6, guidance=0))
    torch.testing.assert_close(none, unlabelled, rtol=0, atol=1e-5)
    guided_images = generate(net, seeds, labels, SamplerSettings(6, guidance=2))
    noise = rng.normal(seeds, rng.SAMPLE_NOISE, 0, torch.zeros_like(seeds), (1, 8, 8))
    levels = sigma_steps(6)
    expected = heun(lambda x, sigma: 2 * net(x, sigma, labels) - net(x, sigma, None), noise, levels)  # pyright: ignore
    torch.testing.assert_close(guided_images, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("label_dim", [10, 0])
def test_guide_gets_the_labels_that_it_knows(net: Precond, label_dim: int):
    guide = small_network(seed=1, label_dim=label_dim)
    seeds, labels = torch.arange(3), torch.tensor([2, 5, 8])
    ours = generate(net, seeds, labels, SamplerSettings(6, guidance=0), guide)
    torch.testing.assert_close(ours, generate(guide, seeds, labels, SamplerSettings(6)), rtol=0, atol=1e-5)
    both = generate(net, seeds, labels, SamplerSettings(6, guidance=1.5), guide)
    assert (both - ours).norm() > 0.01 * ours.norm()


def test_generate_uses_every_setting(net: Precond):
    seeds, labels = torch.tensor([1]), torch.tensor([1])
    base = dict(num_steps=4, sigma_min=0.01, sigma_max=20.0, rho=5.0, S_churn=2.0, S_min=0.02, S_max=10.0, S_noise=1.1)
    changes = dict(num_steps=5, sigma_min=0.1, sigma_max=10.0, rho=3.0, S_churn=1.0, S_min=1.0, S_max=1.0, S_noise=1.0)
    assert base.keys() == changes.keys()
    images = [generate(net, seeds, labels, SamplerSettings(**base))]  # pyright: ignore[reportArgumentType]
    for name, value in changes.items():
        settings = SamplerSettings(**{**base, name: value})  # pyright: ignore[reportArgumentType]
        images.append(generate(net, seeds, labels, settings))
    distances = [float((image - images[0]).norm()) for image in images[1:]]
    assert min(distances) > 1e-3, dict(zip(changes, distances, strict=True))


SETTINGS_OF_OTHERS: dict[str, tuple[Name, dict[str, Any]]] = {
    "eta of ancestral": ("euler_ancestral", {"eta": 0.5}),
    "noise of ancestral": ("euler_ancestral", {"S_noise": 1.2}),
    "eta of 2M": ("dpmpp_2m_sde", {"eta": 0.5}),
    "noise of 2M": ("dpmpp_2m_sde", {"S_noise": 1.2}),
    "type of 2M": ("dpmpp_2m_sde", {"solver_type": "heun"}),
    "eta of 3M": ("dpmpp_3m_sde", {"eta": 0.5}),
    "noise of 3M": ("dpmpp_3m_sde", {"S_noise": 1.2}),
    "order": ("unipc", {"order": 3}),
    "levels of restart": ("restart", {"restart": [[4, 2, 0.06, 0.3]]}),
    "noise of restart": ("restart", {"S_noise": 1.2}),
}


@pytest.mark.parametrize(("sampler", "change"), SETTINGS_OF_OTHERS.values(), ids=SETTINGS_OF_OTHERS)
def test_generate_uses_the_settings_of_each_sampler(net: Precond, sampler: Name, change: dict[str, Any]):
    seeds, labels = torch.tensor([1]), torch.tensor([1])
    usual, other = (generate(net, seeds, labels, SamplerSettings(5, sampler=sampler, **own)) for own in ({}, change))
    assert float((usual - other).norm()) > 1e-4 * float(usual.norm())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_state_of_double_precision(net: Precond, sampler: Name):
    """The same image to rounding, which is there; in float32 for the caller."""
    seeds, labels = torch.arange(2), torch.tensor([1, 4])
    single, double = (
        generate(net, seeds, labels, SamplerSettings(5, sampler=sampler, state_dtype=dtype))
        for dtype in ("float32", "float64")
    )
    assert single.dtype == double.dtype == torch.float32
    torch.testing.assert_close(single, double, rtol=0, atol=1e-3)
    assert not torch.equal(single, double)


def test_the_ways_down_of_restart_are_spaced_as_the_levels(net: Precond):
    seeds, labels = torch.tensor([1]), torch.tensor([1])
    settings = SamplerSettings(5, rho=3.0, sampler="restart", S_noise=0)
    noise = rng.normal(seeds, rng.SAMPLE_NOISE, 0, torch.zeros_like(seeds), (1, 8, 8))
    own, other = (
        restart(denoiser(net, labels, settings), noise, settings.levels, S_noise=0, rho=rho) for rho in (3.0, 7.0)
    )
    found = generate(net, seeds, labels, settings)
    assert torch.equal(found, own) and not torch.allclose(found, other, rtol=0, atol=1e-5)
