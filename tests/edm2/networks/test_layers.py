"""Unit-magnitude layers and the network made of them: magnitudes, gradients, labels, sizes of the paper's presets."""

import pkgutil
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

import recipe.edm2
from recipe.edm2.networks import layers
from recipe.edm2.networks.flops import macs_per_image
from recipe.edm2.networks.kinds import build_network
from recipe.edm2.networks.layers import EPS, MPConv, MPFourier, mp_cat, mp_silu, mp_sum, normalize, resample
from recipe.edm2.networks.precond import Precond, project_weights_
from recipe.edm2.networks.unet import Block, UNet

SMALL: dict[str, Any] = dict(
    img_resolution=8,
    img_channels=2,
    label_dim=10,
    model_channels=16,
    channel_mult=[1, 2],
    num_blocks=1,
    attn_resolutions=[4],
    channels_per_head=16,
)
PRESETS = [  # model_channels, millions of parameters, billions of multiply-adds (paper, Table 6, and its layers alone)
    ("XXS", 64, "31.31", None),
    ("XS", 128, "124.71", "44.95"),
    ("S", 192, "280.21", "100.82"),
    ("M", 256, "497.81", "178.95"),
    ("L", 320, "777.50", "279.34"),
    ("XL", 384, "1119.28", "401.99"),
    ("XXL", 448, "1523.16", "546.90"),
]


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


def rms(x: torch.Tensor, dim: int | list[int] | None = None) -> torch.Tensor:
    return x.detach().double().square().mean(dim=dim).sqrt()


def small_network(gain: float, **changes) -> Precond:
    """A network of random weights whose gains, at first 0, are all `gain`."""
    net = Precond(**{**SMALL, **changes}).eval().requires_grad_(False)
    for name, parameter in net.named_parameters():
        if name.endswith("gain"):
            parameter.fill_(gain)
    return net


def noisy_batch(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Data of standard deviation 0.5 with noise of random levels, and those levels."""
    sigma = torch.randn(n).exp()
    return torch.randn(n, 2, 8, 8) * (0.25 + sigma**2).sqrt()[:, None, None, None], sigma


@pytest.mark.parametrize("dim", [None, 1, [2, 3], [0]])
def test_normalize_gives_unit_rms(dim: int | list[int] | None):
    x = torch.randn(6, 5, 4, 3) * torch.logspace(-1, 3, 6)[:, None, None, None]
    y = normalize(x, dim)
    spanned = [1, 2, 3] if dim is None else [dim] if isinstance(dim, int) else dim
    size = rms(x, spanned)
    torch.testing.assert_close(rms(y, spanned), size / (size + EPS), rtol=1e-6, atol=0)
    assert torch.equal(y.sign(), x.sign())


def test_normalize_leaves_zeros_finite():
    x = torch.zeros(3, 4, requires_grad=True)
    y = normalize(x)
    assert torch.equal(y, torch.zeros(3, 4))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_normalize_computes_the_norm_of_float16_in_float32():
    x = torch.randn(4, 256) * torch.tensor([[1e-3], [1.0], [600.0], [8000.0]])
    y = normalize(x.half())
    assert y.dtype == torch.float16
    largest = torch.finfo(torch.float16).max
    assert x.square().max() > largest
    assert x.norm(dim=1).max() > largest
    # Rounding of the input, the factor and the product to float16: 3 * 2^-11.
    torch.testing.assert_close(y.float(), normalize(x), rtol=1.5e-3, atol=1e-4)


def test_mp_silu_of_unit_normals():
    assert rms(mp_silu(torch.randn(1 << 18))) == pytest.approx(1, abs=0.005)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_mp_sum_of_unit_normals(t: float):
    a, b = torch.randn(2, 1 << 18)
    total = mp_sum(a, b, t)
    assert rms(total) == pytest.approx(1, abs=0.01)
    weight_a, weight_b = (float((total * part).mean()) for part in (a, b))
    assert weight_a * t == pytest.approx(weight_b * (1 - t), abs=0.01)


@pytest.mark.parametrize("t", [0.3, 0.5])
@pytest.mark.parametrize("widths", [(3, 29), (16, 16)])
def test_mp_cat_of_unit_normals(t: float, widths: tuple[int, int]):
    a, b = (torch.randn(512, width, 8, 8) for width in widths)
    joined = mp_cat(a, b, t=t)
    assert joined.shape == (512, sum(widths), 8, 8)
    assert rms(joined) == pytest.approx(1, abs=0.01)
    energy_a = joined[:, : widths[0]].square().sum() / joined.square().sum()
    assert float(energy_a) == pytest.approx((1 - t) ** 2 / ((1 - t) ** 2 + t**2), abs=0.01)


def test_mp_fourier():
    fourier = MPFourier(4096, bandwidth=2.0)
    features = fourier(torch.randn(256).half())
    assert features.dtype == torch.float32
    assert features.shape == (256, 4096)
    assert rms(features) == pytest.approx(1, abs=0.01)
    assert rms(fourier.freqs) == pytest.approx(2 * torch.pi * 2, rel=0.05)
    assert float(fourier.phases.max()) == pytest.approx(2 * torch.pi, rel=0.01)
    assert not list(fourier.parameters())


@pytest.mark.parametrize("kernel", [(), (1, 1), (3, 3), (5, 5)])
@pytest.mark.parametrize("in_channels", [3, 24])
def test_mp_conv_keeps_unit_variance(kernel: tuple[int, ...], in_channels: int):
    conv = MPConv(in_channels, 16, kernel).requires_grad_(False)
    conv.weight.mul_(torch.logspace(-1, 2, 16).reshape(16, *[1] * (conv.weight.ndim - 1)))
    border = kernel[0] // 2 if kernel else 0
    if kernel:
        y = conv(torch.randn(512, in_channels, 8, 8))
        assert y.shape == (512, 16, 8, 8)
        y = y[:, :, border : 8 - border, border : 8 - border]
        # 8192 values or more of each unit: 5% would be 6 standard errors if neighbours did not correlate.
        torch.testing.assert_close(rms(y, [0, 2, 3]), torch.ones(16).double(), rtol=0, atol=0.05)
    else:
        y = conv(torch.randn(8192, in_channels))
        assert y.shape == (8192, 16)
        torch.testing.assert_close(rms(y, 0), torch.ones(16).double(), rtol=0, atol=0.03)


def test_mp_conv_gain_scales_the_output():
    conv = MPConv(4, 6)
    x = torch.randn(5, 4)
    torch.testing.assert_close(conv(x, gain=torch.tensor([-2.5])), -2.5 * conv(x))
    torch.testing.assert_close(conv(x, gain=3.0), 3 * conv(x))


@pytest.mark.parametrize("shape", [(8, 64), (8, 24, 3, 3)])
def test_project_gives_unit_rms_and_is_idempotent(shape: tuple[int, ...]):
    conv = MPConv(shape[1], shape[0], shape[2:]).requires_grad_(False)
    conv.weight.mul_(torch.logspace(-1, 1, 8).reshape(8, *[1] * (len(shape) - 1)))
    x = torch.randn(4, *shape[1:])
    before = conv(x)
    pointer = conv.weight.data_ptr()
    conv.project_()
    assert conv.weight.data_ptr() == pointer
    once = conv.weight.clone()
    # eps pulls the RMS r to r / (r + eps): 10 eps below 1 for the smallest unit, which has r = 0.1.
    torch.testing.assert_close(rms(once.flatten(1), 1), torch.ones(8).double(), rtol=0, atol=1.3 * 10 * EPS)
    torch.testing.assert_close(conv(x), before, rtol=0, atol=1.3 * 10 * EPS * float(before.abs().max()))
    conv.project_()
    twice = conv.weight.clone()
    torch.testing.assert_close(rms(twice.flatten(1), 1), torch.full((8,), 1 - EPS).double(), rtol=0, atol=2e-6)
    conv.project_()
    torch.testing.assert_close(conv.weight, twice, rtol=2e-6, atol=0)


def test_project_weights_leaves_gains_and_buffers_alone():
    net = small_network(gain=0.7)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for parameter in net.parameters():
        if parameter.ndim > 1:
            parameter.mul_(3)
    project_weights_(net)
    assert any(name.endswith("gain") for name in before)
    for name, tensor in net.state_dict().items():
        if name.endswith(("gain", "freqs", "phases")):
            assert torch.equal(tensor, before[name]), name
        else:
            torch.testing.assert_close(rms(tensor.flatten(1), 1), torch.ones(len(tensor)).double(), rtol=0, atol=2e-4)


@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_gradient_is_orthogonal_to_the_weight_of_each_unit(kernel: tuple[int, ...]):
    conv = MPConv(6, 8, kernel)
    y = conv(torch.randn(16, 6, *([8, 8] if kernel else [])))
    (y.square() * torch.randn_like(y)).sum().backward()
    assert conv.weight.grad is not None
    weight, gradient = conv.weight.detach().flatten(1), conv.weight.grad.flatten(1)
    cosine = (weight * gradient).sum(dim=1) / (weight.norm(dim=1) * gradient.norm(dim=1))
    assert gradient.norm(dim=1).min() > 1e-3
    assert cosine.abs().max() <= 5 * EPS  # eps leaves a radial part of eps / rms


def test_resample():
    x = torch.randn(2, 3, 4, 6)
    up = resample(x, "up")
    assert up.shape == (2, 3, 8, 12)
    assert torch.equal(up[:, :, 1::2, ::2], x)
    torch.testing.assert_close(resample(up, "down"), x, rtol=1e-6, atol=1e-6)
    y = torch.randn_like(up)
    # The two are transposes but for the factor 4 that keeps magnitudes.
    torch.testing.assert_close((up * y).sum(), 4 * (x * resample(y, "down")).sum(), rtol=1e-4, atol=1e-4)
    assert resample(x, "keep") is x


def test_bad_resample_mode():
    with pytest.raises(ValueError, match="'half' is not one of 'keep', 'down', 'up'"):
        resample(torch.zeros(1, 1, 2, 2), "half")


def test_bad_channels_per_head():
    with pytest.raises(ValueError, match="channels_per_head 24 does not divide a block's 32 channels"):
        UNet(**{**SMALL, "channels_per_head": 24})


def test_bad_resolution():
    with pytest.raises(ValueError, match=r"img_resolution 10 cannot be halved 2 times.*\[1, 1, 2\]"):
        UNet(**{**SMALL, "img_resolution": 10, "channel_mult": [1, 1, 2]})


def test_gains_are_zero_and_have_one_dimension():
    net = Precond(**SMALL)
    gains = {name: p for name, p in net.named_parameters() if name.endswith("gain")}
    assert len(gains) == len(net.blocks()) + 1
    for name, gain in gains.items():
        assert gain.shape == (1,), name
        assert gain.item() == 0, name


def test_fresh_network_only_skips():
    net = Precond(**SMALL, sigma_data=0.4)
    x, sigma = noisy_batch(4)
    labels = torch.arange(4)
    assert torch.equal(net.unet(x, sigma.log() / 4, labels), torch.zeros_like(x))
    c_skip = 0.4**2 / (0.4**2 + sigma**2)
    torch.testing.assert_close(net(x, sigma, labels), c_skip[:, None, None, None] * x, rtol=1e-6, atol=0)


@pytest.mark.parametrize("changes", [{}, {"channel_mult": [1, 2, 2], "num_blocks": 3, "model_channels": 32}])
def test_activations_keep_unit_magnitude(changes: dict):
    net = small_network(gain=0, **changes)
    net.unet.out_gain.fill_(1)
    found: dict[str, float] = {}

    def record(name: str):
        def hook(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            found[name] = float(rms(output))

        return hook

    watched = {**dict(net.unet.enc.items()), **{f"dec_{name}": layer for name, layer in net.unet.dec.items()}}
    watched["emb_noise"], watched["unet"] = net.unet.emb_noise, net.unet
    assert net.unet.emb_label is not None
    watched["emb_label"] = net.unet.emb_label
    for name, layer in watched.items():
        layer.register_forward_hook(record(name))
    x, sigma = noisy_batch(32)
    net(x, sigma, torch.arange(32) % 10)
    assert found.keys() == watched.keys()
    for name, value in found.items():
        assert 0.6 <= value <= 1.5, (name, value)


def test_unlabelled_is_label_minus_one():
    net = small_network(gain=1)
    x, sigma = noisy_batch(3)
    unlabelled = net(x, sigma, None)
    assert torch.equal(net(x, sigma, torch.full((3,), -1)), unlabelled)
    labelled = net(x, sigma, torch.full((3,), 4))
    assert (labelled - unlabelled).norm() > 0.01 * unlabelled.norm()
    assert (labelled - net(x, sigma, torch.full((3,), 5))).norm() > 0.01 * unlabelled.norm()


def test_labels_and_noise_levels_are_per_image():
    net = small_network(gain=1)
    x, sigma = noisy_batch(4)
    labels = torch.tensor([3, -1, 0, 9])
    together = net(x, sigma, labels)
    alone = torch.cat([net(x[i : i + 1], sigma[i], labels[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_unconditional_network_ignores_labels():
    net = small_network(gain=1, label_dim=0)
    x, sigma = noisy_batch(3)
    assert torch.equal(net(x, sigma, torch.arange(3)), net(x, sigma))


def test_attention_does_not_depend_on_the_magnitude_of_its_input():
    block = Block(32, 32, 16, attention=True, channels_per_head=16).requires_grad_(False)
    x = torch.randn(2, 32, 4, 4)
    attended = block.self_attention(x)
    torch.testing.assert_close(block.self_attention(50 * x), attended, rtol=0, atol=5 * EPS)  # eps / rms for q, k and v
    assert 0.1 < rms(attended) < 1


def test_half_precision_activations():
    net = small_network(gain=0.5)
    x, sigma = noisy_batch(3)
    full = net(x, sigma, torch.arange(3))
    net.dtype = torch.float16
    seen = []
    net.unet.enc["4x4_block0"].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    half = net(x, sigma, torch.arange(3))
    assert seen == [torch.float16]
    assert half.dtype == torch.float32
    assert 0 < (half - full).norm() <= 3e-3 * full.norm()  # 2^-11 per operation, and some dozen of them in a row


def test_clipping_bounds_the_activations():
    net = small_network(gain=1, clip_act=0.5)
    found = []
    for block in net.blocks():
        block.register_forward_hook(lambda module, inputs, output: found.append(float(output.abs().max())))
    x, sigma = noisy_batch(2)
    net(x, sigma)
    assert found
    assert max(found) == 0.5


def test_dropout_only_in_training():
    net = small_network(gain=1, dropout=0.5)
    x, sigma = noisy_batch(2)
    assert torch.equal(net(x, sigma), net(x, sigma))
    net.train()
    assert not torch.equal(net(x, sigma), net(x, sigma))


@pytest.mark.parametrize(("name", "channels", "parameters", "macs"), PRESETS)
def test_sizes_of_the_presets(name: str, channels: int, parameters: str, macs: str | None):
    with torch.device("meta"):
        net = Precond(img_resolution=64, img_channels=4, label_dim=1000, model_channels=channels)
    assert f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f}" == parameters
    if macs is not None:
        assert f"{macs_per_image(net) / 1e9:.2f}" == macs


def test_method_needs_torch_only():
    modules = [module.name for module in pkgutil.walk_packages(recipe.edm2.__path__, "recipe.edm2.")]
    assert "recipe.edm2.samplers.generate" in modules
    code = "import sys\n" + "".join(f"import {module}\n" for module in modules) + "print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    roots = {name.partition(".")[0] for name in out.split()}
    assert "torch" in roots
    assert not roots & {"composer", "streaming", "omegaconf", "boto3", "pydantic"}


def test_eps_of_the_official_code():
    assert layers.EPS == 1e-4


def test_unknown_kind_of_network():
    assert isinstance(build_network("G", **SMALL), Precond)
    with pytest.raises(ValueError, match="kind of network 'H': must be one of G"):
        build_network("H", **SMALL)


def test_blocks_are_in_order_of_execution():
    net = small_network(gain=0)
    run: list[nn.Module] = []
    for block in net.blocks():
        block.register_forward_hook(lambda module, inputs, output: run.append(module))
    x, sigma = noisy_batch(2)
    net(x, sigma)
    assert len(run) == 3 + 7
    assert all(one is other for one, other in zip(run, net.blocks(), strict=True))


LAYERS = {
    "embedding": ["emb_fourier", "emb_noise", "emb_label", "emb_augment"],
    "encoder": ["8x8_conv", "8x8_block0", "4x4_down", "4x4_block0"],
    "decoder": ["4x4_in0", "4x4_in1", "4x4_block0", "4x4_block1", "8x8_up", "8x8_block0", "8x8_block1"],
}


def test_layers_are_made_and_drawn_in_this_order():
    """Fresh weights come from torch's generator one layer after the other, so their order is part of the result."""
    torch.manual_seed(0)
    unet = UNet(**SMALL, augment_dim=9)
    assert [name for name, _ in unet.named_children()] == [*LAYERS["embedding"], "enc", "dec", "out_conv"]
    assert [*unet.enc] == LAYERS["encoder"]
    assert [*unet.dec] == LAYERS["decoder"]
    torch.manual_seed(0)
    for layer in unet.modules():
        if isinstance(layer, MPConv):
            assert torch.equal(layer.weight, torch.randn(layer.weight.shape))
        elif isinstance(layer, MPFourier):
            layer.initial_state()  # as many numbers
