"""Sizes of the network that come from the data."""

from dataclasses import replace
from pathlib import Path

import pytest

from helpers.commands import ROOT, TINY_RUN
from recipe.configuration.agreement import DisagreementError, check_agreement
from recipe.configuration.problems import ConfigError
from recipe.configuration.reader import read_config, to_yaml
from recipe.configuration.schema import Config
from recipe.data.checks import check_data, check_kind, resolve
from recipe.data.facts import DataError, DataFacts
from recipe.planning.plan import print_plan

EDM2 = str(ROOT / "yamls" / "edm2.yaml")
AUTO = {"model.img_resolution": "auto", "model.img_channels": "auto", "model.label_dim": "auto",
        "model.attn_resolutions": "[level1]", "model.sigma_data": "auto"}  # fmt: skip
PHOTOS = DataFacts(kind="pixels", img_resolution=64, img_channels=3, label_dim=4, sigma_data=0.4)
PRESETS = ("pixels-32", "pixels-64", "pixels-128", "latents-256", "latents-512", "cifar10")


def config(**overrides: str) -> Config:
    chosen = dict(item.split("=", 1) for item in TINY_RUN) | AUTO | overrides
    return read_config([EDM2, *(f"{key}={value}" for key, value in chosen.items())])


def test_the_datas_sizes(digits: Path):
    found = config(**{"data.local": str(digits)})
    resolved = resolve(found, check_data(found).facts)
    assert resolved.model.shape() == (8, 1, 10)
    assert resolved.model.attn_resolutions == [4] and isinstance(resolved.model.sigma_data, float)
    assert resolved.network_arguments()["attn_resolutions"] == [4]
    assert resolve(resolved, PHOTOS) == resolved  # what is known is not asked for again


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_says_which_kind_of_data_it_is_for(preset: str, digits: Path):
    """Settings for latents would train on pictures without a word, and badly."""
    found = read_config([str(ROOT / "yamls" / f"{preset}.yaml"), f"data.local={digits}"])
    if preset.startswith("latents"):
        with pytest.raises(DataError, match=r"data\.kind = latents: .* holds pixels, .*prepare\.py --vae"):
            check_data(found)
    else:
        assert found.data.kind == "pixels"
        with pytest.raises(DataError, match=r"data\.kind = pixels: here holds latents, .*prepare\.py without --vae"):
            check_kind(DataFacts(kind="latents"), found, "here")


def test_levels():
    for given, resolutions in (("[level0]", [64]), ("[level1, 32, level0]", [32, 64]), ("[]", [])):
        assert resolve(config(**{"model.attn_resolutions": given}), PHOTOS).model.attn_resolutions == resolutions
    with pytest.raises(ConfigError, match=r"must be among the 2 levels of model\.channel_mult .*; not \['level2'\]"):
        config(**{"model.attn_resolutions": "[level2]"})
    for wrong in ("[level]", "[level01]", "[Level1]", "[level-1]", "[0]"):
        with pytest.raises(ConfigError, match="must be a resolution such as 16, or a level such as level1"):
            config(**{"model.attn_resolutions": wrong})


@pytest.mark.parametrize(
    ("overrides", "facts", "said"),
    [
        ({}, {"img_resolution": 63}, r"model\.img_resolution = 63: must be a multiple of 2"),
        ({"model.attn_resolutions": "[16]"}, {}, r"model\.attn_resolutions = \[16\]: must be among the resolutions"),
        ({}, {"img_channels": None}, r"model\.img_channels = auto: the data has no stats\.json that says img_channels"),
        ({"samples.interval": "16ba"}, {"img_channels": 4}, r"samples\.vae: is missing"),
        ({"samples.interval": "16ba"}, {"label_dim": 0}, r"samples\.guidance = 2\.0: needs a network that also learns"),
    ],
)
def test_what_the_data_does_not_allow(overrides: dict[str, str], facts: dict[str, int | None], said: str):
    """Rules that wait for the data are asked once they are known."""
    found = config(**overrides)
    with pytest.raises((ConfigError, DataError), match=said):
        resolve(found, replace(PHOTOS, **facts))  # pyright: ignore[reportArgumentType]


def test_data_without_classes_drop_no_labels():
    assert resolve(config(), replace(PHOTOS, label_dim=0)).loss.label_dropout == 0
    with pytest.raises(ConfigError, match="has no labels to drop"):
        config(**{"model.label_dim": "0"})


def test_other_data_are_noticed_on_resume():
    """config.yaml holds the numbers, so that auto and the number are the same, and other data are not."""
    stored = to_yaml(resolve(config(), PHOTOS))
    check_agreement(resolve(config(), PHOTOS), stored, "here")
    check_agreement(resolve(config(**{"model.img_resolution": "64"}), PHOTOS), stored, "here")
    with pytest.raises(DisagreementError, match=r"model\.label_dim was 4 and is now 5"):
        check_agreement(resolve(config(), replace(PHOTOS, label_dim=5)), stored, "here")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_need_the_datas_place_alone(name: str):
    """RGB or grey, with classes or without."""
    kind = "latents" if name.startswith("latents") else "pixels"
    found = read_config([str(ROOT / "yamls" / f"{name}.yaml"), "data.local=somewhere"])
    size = {"pixels-32": 32, "pixels-64": 64, "pixels-128": 128, "latents-256": 32, "latents-512": 64, "cifar10": 32}
    for channels in (4,) if kind == "latents" else (1, 3):
        for label_dim in (0, 10):
            facts = DataFacts(
                kind=kind, img_resolution=size[name], img_channels=channels, label_dim=label_dim, sigma_data=0.5
            )
            model = resolve(found, facts).model
            assert model.attn_resolutions == ([8, 4] if name == "latents-256" else [16, 8])


def test_cifar10_is_the_recipe_that_this_one_grew_from():
    found = read_config([str(ROOT / "yamls" / "cifar10.yaml"), "data.local=somewhere"])
    assert (found.model.model_channels, found.model.channel_mult, found.global_batch_size) == (256, [1, 1, 1], 512)
    assert (found.loss.P_mean, found.loss.P_std, found.loss.label_dropout) == (-1.2, 1.2, 0.1)
    assert found.augment is not None and found.augment.p == 0.12
    assert found.ema.sigma_rels == [0.05, 0.1]


def test_a_plan_asks_data_at_hand(digits: Path, capsys: pytest.CaptureFixture[str]):
    def plan(**overrides: str) -> str:
        print_plan(config(dry_run="true", **overrides))
        return capsys.readouterr().out

    assert "data              5000 images of 1x8x8 pixels, network of 10 classes\n" in plan(
        **{"data.local": str(digits)}
    )
    with pytest.raises(DataError, match=r"model\.label_dim is 7, but the data has 10"):
        plan(**{"data.local": str(digits), "model.label_dim": "7"})
    with pytest.raises(DataError, match=r"model\.img_channels and model\.label_dim = auto: the plan needs numbers"):
        plan(**{"data.local": "nowhere"})
    known = {"model.img_resolution": "8", "model.img_channels": "1", "model.label_dim": "10"}
    with pytest.raises(DataError, match=r"model\.label_dim is 7, but the data has 10"):
        plan(**known | {"data.local": str(digits), "model.label_dim": "7"})
    assert "not here, so not checked" in plan(**{"data.local": "nowhere"}, **known)
