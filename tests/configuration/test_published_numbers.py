"""Every published number that the recipe holds, against one table written down from the papers.

Nothing here is computed from the recipe's constants: a changed preset, default or constant must be seen. "The paper" is
arXiv 2312.02696v2; EDM is Karras et al. 2022.
"""

import inspect
import math
from typing import Any, NamedTuple

import pytest
import torch

from helpers.commands import ROOT
from recipe.configuration.inputs import Augment
from recipe.configuration.reader import read_config
from recipe.configuration.schema import Config, Samples
from recipe.edm2 import augment, latents
from recipe.edm2.augment import Augmentation, draw_transforms
from recipe.edm2.ema import SIGMA_REL_LIMIT
from recipe.edm2.images import to_network, to_pixels
from recipe.edm2.loss import loss_weight, sample_sigma
from recipe.edm2.lr import learning_rate
from recipe.edm2.networks import layers
from recipe.edm2.networks.precond import Precond
from recipe.edm2.networks.unet import Block, UNet
from recipe.edm2.samplers.generate import SAMPLERS, SamplerSettings
from recipe.edm2.samplers.heun import heun
from recipe.edm2.samplers.names import OPTIONS
from recipe.edm2.samplers.schedule import sigma_steps

MI = 2**20


class Row(NamedTuple):
    """A column of Table 6; batch 2048 everywhere.

    Attributes:
        channels: model_channels.
        lr, t_ref, dropout, P_mean, P_std: of training.
        mi: duration in 2^20 images.
        mimg: the same as the paper prints it, in 10^6 images.
        mparams, gflops: size of the network.
        days: on 32 A100.
        fid, sigma_rel: without guidance, and the length of the average that gave it.
    """

    channels: int
    lr: float
    t_ref: float
    dropout: float
    P_mean: float
    P_std: float
    mi: int
    mimg: float
    mparams: float
    gflops: float
    days: float
    fid: str
    sigma_rel: str


TABLE_6 = {
    #                   ch     lr  t_ref drop  P_mean std  Mi    Mimg    Mparams  Gflops days  FID     sigma_rel
    "img512-xs": Row(128, 0.0120, 70e3, 0.0, -0.4, 1.0, 2048, 2147.5, 124.7, 45.5, 3.0, "3.53", "0.135"),
    "img512-s": Row(192, 0.0100, 70e3, 0.0, -0.4, 1.0, 2048, 2147.5, 280.2, 102.2, 5.3, "2.56", "0.130"),
    "img512-m": Row(256, 0.0090, 70e3, 0.1, -0.4, 1.0, 2048, 2147.5, 497.8, 180.8, 7.8, "2.25", "0.100"),
    "img512-l": Row(320, 0.0080, 70e3, 0.1, -0.4, 1.0, 1792, 1879.0, 777.5, 282.2, 10.2, "2.06", "0.085"),
    "img512-xl": Row(384, 0.0070, 70e3, 0.1, -0.4, 1.0, 1280, 1342.2, 1119.3, 405.9, 9.7, "1.96", "0.085"),
    "img512-xxl": Row(448, 0.0065, 70e3, 0.1, -0.4, 1.0, 896, 939.5, 1523.2, 552.1, 9.1, "1.91", "0.070"),
    "img64-s": Row(192, 0.0100, 35e3, 0.0, -0.8, 1.6, 1024, 1073.7, 280.2, 101.9, 2.6, "1.58", "0.075"),
    "img64-m": Row(256, 0.0090, 35e3, 0.1, -0.8, 1.6, 2048, 2147.5, 497.8, 180.8, 7.8, "1.43", "0.060"),
    "img64-l": Row(320, 0.0080, 35e3, 0.1, -0.8, 1.6, 1024, 1073.7, 777.5, 282.1, 5.8, "1.33", "0.040"),
    "img64-xl": Row(384, 0.0070, 35e3, 0.1, -0.8, 1.6, 640, 671.1, 1119.3, 405.9, 4.9, "1.33", "0.040"),
}

SHARED: dict[str, Any] = {  # by all columns: Table 6, the box of Figure 22, Appendices B.7 and D.2, the official code
    "model.img_resolution": 64,
    "model.label_dim": 1000,
    "model.channel_mult": [1, 2, 3, 4],
    "model.channel_mult_noise": None,  # as wide as the first level
    "model.channel_mult_emb": None,  # as wide as the last
    "model.num_blocks": 3,
    "model.attn_resolutions": [16, 8],
    "model.channels_per_head": 64,
    "model.label_balance": 0.5,
    "model.concat_balance": 0.5,
    "model.res_balance": 0.3,
    "model.attn_balance": 0.3,
    "model.clip_act": 256.0,
    "model.sigma_data": 0.5,
    "model.logvar_channels": 128,
    "model.dtype": "auto",  # float16 on GPUs
    "loss.label_dropout": 0.0,
    "optimizer.betas": [0.9, 0.99],
    "optimizer.eps": 1e-8,
    "ema.sigma_rels": [0.05, 0.1],
    "ema.snapshot_dtype": "float16",
    "ema.snapshot_keep": -1,  # all, for post-hoc averages
    "global_batch_size": 2048,
    "data.x_flip": False,
    "data.class_balanced": False,
    "data.shuffle": True,
    "augment": None,
    "samples.num_steps": 32,
    "samples.guidance": 1.0,
    "numerics.tf32": False,
    "numerics.reduced_precision_reduction": False,
}
SPANS = {"optimizer.rampup": 10_000_000, "ema.snapshot_interval": 8 * MI}  # in images


def preset(name: str) -> Config:
    return read_config([str(ROOT / "yamls" / f"{name}.yaml"), "data.local=none"])


def value(config: Config, key: str) -> Any:
    found: Any = config
    for part in key.split("."):
        found = getattr(found, part)
    return found


def test_each_column_of_table_6_is_a_preset_and_no_preset_is_unknown():
    assert {path.stem for path in (ROOT / "yamls").glob("img*.yaml")} == set(TABLE_6)


@pytest.mark.parametrize("name", TABLE_6)
def test_preset(name: str):
    row, config = TABLE_6[name], preset(name)
    assert config.run_name == name
    assert config.model.model_channels == row.channels
    assert config.model.img_channels == (4 if name.startswith("img512") else 3)
    assert config.model.dropout == row.dropout
    assert config.optimizer.ref_lr == row.lr
    assert config.optimizer.ref_batches == row.t_ref
    assert (config.loss.P_mean, config.loss.P_std) == (row.P_mean, row.P_std)
    duration = config.duration.images(2048)
    assert (duration, round(duration / 1e6, 1)) == (row.mi * MI, row.mimg)
    assert {key: value(config, key) for key in SHARED} == SHARED
    assert {key: value(config, key).images(2048) for key in SPANS} == SPANS


@pytest.mark.parametrize("name", TABLE_6)
def test_size_of_the_network(name: str):
    with torch.device("meta"):
        net = Precond(**preset(name).network_arguments())
    parameters = sum(parameter.numel() for parameter in net.parameters())
    assert round(parameters / 1e6, 1) == TABLE_6[name].mparams
    blocks = [module for module in net.modules() if isinstance(module, Block)]
    assert sum(block.num_heads > 0 for block in blocks) == 15
    # on each of 4 levels 3 in the encoder and 4 in the decoder, and between them 3 down, 3 up and 2 in the middle
    assert len(blocks) == 4 * (3 + 4) + 3 + 3 + 2


@pytest.mark.parametrize("name", TABLE_6)
def test_header_of_the_preset(name: str):
    row = TABLE_6[name]
    header = (ROOT / "yamls" / f"{name}.yaml").read_text().split("\nrun_name:")[0]
    for said in (
        f"size {name.split('-')[1].upper()}:",
        f" {row.mparams:.1f} Mparams",
        f" {row.gflops:.1f} Gflops",
        f" {row.days:.1f} days on 32 A100",
        f"FID {row.fid} ",
        f"sigma_rel {row.sigma_rel}",
    ):
        assert said in header


def test_schema_alone_is_size_s_of_imagenet_512():
    least = Config.model_validate({"run_name": "x", "data": {"local": "d"}})
    named = preset("img512-s")
    assert least.model_dump(exclude={"run_name", "data"}) == named.model_dump(exclude={"run_name", "data"})
    assert least.checkpoints.interval.images(2048) == 8 * MI


# Defaults of functions, for those who use the method without the recipe


def defaults(function: Any) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def test_defaults_of_the_learning_rate():
    assert defaults(learning_rate) == {"ref_lr": 0.01, "ref_batches": 70_000, "rampup_nimg": 10_000_000}


def test_defaults_of_the_loss():
    assert defaults(sample_sigma) == {"P_mean": -0.4, "P_std": 1.0}
    assert defaults(loss_weight) == {"sigma_data": 0.5}


def test_defaults_of_the_network():
    expected = {key.split(".")[1]: shared for key, shared in SHARED.items() if key.startswith("model.")}
    of_blocks = ("channels_per_head", "dropout", "res_balance", "attn_balance", "clip_act")
    found = defaults(UNet) | {key: defaults(Block)[key] for key in of_blocks}
    found |= {key: value for key, value in defaults(Precond).items() if key != "dtype"}
    found["channel_mult"], found["attn_resolutions"] = list(found["channel_mult"]), list(found["attn_resolutions"])
    assert found.pop("model_channels") == 192
    assert found.pop("dropout") == 0
    assert found.pop("augment_dim") == 0
    for given_by_the_data in ("img_resolution", "label_dim", "dtype"):
        del expected[given_by_the_data]
    assert found == expected


def test_defaults_of_the_sampler():
    churn = {"S_churn": 0, "S_min": 0, "S_max": math.inf, "S_noise": 1}
    expected: dict[str, Any] = {"sigma_min": 0.002, "sigma_max": 80, "rho": 7}
    assert defaults(sigma_steps) == expected
    guidance = {"guidance": 1, "interval": (0, math.inf), "in_one_batch": True}
    others = {"sampler": "heun", "eta": 1, "solver_type": "midpoint", "order": 2, "restart": ((3, 2, 0.06, 0.3),)}
    settings = expected | churn | guidance | others | {"num_steps": 32, "state_dtype": "float32"}
    assert vars(SamplerSettings()) == settings
    for name, sampler in SAMPLERS.items():
        found = defaults(sampler)
        assert found.pop("randn_like", torch.randn_like) is torch.randn_like
        assert found.pop("rho", 7) == 7
        assert found == {option: settings[option] for option in OPTIONS[name]}
    assert vars(Samples().settings()) == settings | {"restart": [[3, 2, 0.06, 0.3]], "in_one_batch": False}
    found = defaults(heun)
    assert found.pop("randn_like") is torch.randn_like
    assert found == churn
    assert sigma_steps(32).tolist()[:2] == pytest.approx(
        [80, (80 ** (1 / 7) + (0.002 ** (1 / 7) - 80 ** (1 / 7)) / 31) ** 7]
    )


# Constants


def test_constants_of_the_layers():
    assert layers.EPS == 1e-4
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    assert torch.allclose(layers.mp_silu(x) * 0.596, x / (1 + (-x).exp()), rtol=1e-12)
    assert defaults(layers.mp_sum)["t"] == 0.5
    assert defaults(layers.mp_cat)["t"] == 0.5
    assert defaults(layers.MPFourier)["bandwidth"] == 1
    threes = torch.full((1, 4), 3.0)  # their RMS is 3, to which eps is added, outside the root
    assert torch.allclose(layers.normalize(threes), torch.full((1, 4), 3 / (3 + 1e-4)), rtol=1e-7, atol=0)


def test_constants_of_the_latents():
    assert latents.STABLE_DIFFUSION.mean == (5.81, 3.25, 0.12, -2.15)
    assert latents.STABLE_DIFFUSION.std == (4.17, 4.62, 3.71, 3.28)
    assert latents.SIGMA_DATA == 0.5


def test_pixels_are_within_1():
    assert to_network(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]
    assert to_pixels(torch.tensor([-3.0, -1.0, 0.0, 1.0, 1.5])).tolist() == [0, 0, 128, 255, 255]


def test_facts_of_the_averages():
    assert pytest.approx(0.28868, abs=1e-5) == SIGMA_REL_LIMIT


def test_learning_rate_of_size_s():
    """It decays from 143.4 Mimg on, and ends at 0.00258."""
    rate = lambda nimg: learning_rate(nimg, 2048, 0.01, 70_000, 10_000_000)  # noqa: E731
    assert [rate(nimg) for nimg in (0, 5_000_000, 10_000_000)] == [0, 0.005, 0.01]
    assert round(70_000 * 2048 / 1e6, 1) == 143.4
    assert rate(70_000 * 2048) == 0.01 > rate(70_000 * 2048 + 1)
    assert rate(4 * 70_000 * 2048) == pytest.approx(0.005, rel=1e-12)
    assert rate(2**31) == pytest.approx(0.00258, abs=5e-6)


def test_constants_of_the_augmentation():
    """EDM, Appendix F.2 and Table 6: log2 of scale and stretch by 0.2, translation by 1/8 of the image."""
    assert defaults(Augmentation) == {
        name: 0.0 for name in ("x_flip", "y_flip", "scale", "rotation", "anisotropy", "translation")
    }
    given = Augment.model_validate({})
    assert given.model_dump() == {
        "p": 0.12,
        "x_flip": 1e8,
        "y_flip": 1,
        "scale": 1,
        "rotation": 1,
        "anisotropy": 1,
        "translation": 1,
    }
    assert augment.CONDITIONS == 9
    n = 1 << 16
    drawn = draw_transforms(Augmentation(1, 1, 1, 1, 1, 1, 1), seed=1, batch=2, ids=torch.arange(n))
    share = 5 * (2 * n) ** -0.5  # five standard errors of a standard deviation, relative to it: 1.4%
    assert drawn.scale.log2().std().item() == pytest.approx(0.2, rel=share)
    assert drawn.stretch.log2().std().item() == pytest.approx(0.2, rel=share)
    assert drawn.shift.std(dim=0).tolist() == pytest.approx([1 / 8, 1 / 8], rel=share)
    conditions = drawn.conditions()
    assert torch.allclose(conditions[:, 2], drawn.scale.log2() / 0.2, atol=1e-5)
    assert torch.allclose(conditions[:, 5:7].norm(dim=1), (drawn.stretch.log2() / 0.2).abs(), atol=1e-5)
    assert torch.allclose(conditions[:, 7:], drawn.shift * 8)
