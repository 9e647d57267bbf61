"""A configuration may go on with a run only if it would give the same result."""

import re

import pytest

from recipe.configuration.agreement import DisagreementError, check_agreement
from recipe.configuration.keys import FIXED, FREE, NAMED, all_keys, resume_of, section_in
from recipe.configuration.reader import read_config, to_yaml
from recipe.configuration.schema import Config

BASE = ["yamls/edm2.yaml", "data.local=x"]


def check(*overrides: str) -> None:
    check_agreement(read_config([*BASE, *overrides]), to_yaml(read_config(BASE)), "runs/edm2")


@pytest.mark.parametrize(
    "override",
    [
        "duration=102400",
        "fsdp={}",
        "device=cpu",
        "device_train_microbatch_size=8",
        "checkpoints.keep=5",
        "ema.snapshot_interval=3200",
        "data.num_workers=0",
        "data.remote=s3://b/elsewhere",
        "samples.interval=null",
        "logging.progress_bar=false",
    ],
)
def test_free_keys_may_change(override: str):
    check(override)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("optimizer.ref_lr=0.02", "optimizer.ref_lr"),
        ("seed=1", "seed"),
        ("global_batch_size=32", "global_batch_size"),
        ("loss.P_mean=-0.4", "loss.P_mean"),
        ("data.num_canonical_nodes=64", "data.num_canonical_nodes"),
        ("model.dtype=bfloat16", "model.dtype"),
        ("data.x_flip=true", "data.x_flip"),
        ("data.class_balanced=true", "data.class_balanced"),
    ],
)
def test_others_are_refused_unless_named(override: str, key: str):
    with pytest.raises(DisagreementError) as caught:
        check(override)
    assert f"{key} was " in str(caught.value) and "runs/edm2" in str(caught.value)
    insist = re.search(r"'(allow_changes=\[.*?\])'", str(caught.value))
    assert insist is not None
    check(override, insist[1])


@pytest.mark.parametrize("override", ["model.num_blocks=2", "ema.sigma_rels=[0.05]", "augment={}"])
def test_shapes_cannot_change_even_if_named(override: str):
    key = override.split("=")[0]
    with pytest.raises(DisagreementError, match=r"init\.path"):
        check(override, f"allow_changes=[{key}]")


def test_all_differences_at_once():
    with pytest.raises(DisagreementError, match=r"seed was 0 and is now 1.*optimizer.ref_lr was 0.01 and is now 0.02"):
        check("seed=1", "optimizer.ref_lr=0.02")


def test_a_key_that_an_older_version_did_not_know():
    old = re.sub(r"(?m)^  P_std:.*\n", "", to_yaml(read_config(BASE)))
    check_agreement(read_config([*BASE, "loss.P_std=2.0"]), old, "runs/edm2")


def test_augmentation_may_change_if_named_but_not_go():
    stored = to_yaml(read_config([*BASE, "augment.p=0.1"]))
    check_agreement(read_config([*BASE, "augment.p=0.1"]), stored, "here")
    with pytest.raises(DisagreementError, match=r"augment\.p was 0\.1 and is now 0\.2"):
        check_agreement(read_config([*BASE, "augment.p=0.2"]), stored, "here")
    check_agreement(read_config([*BASE, "augment.p=0.2", "allow_changes=[augment.p]"]), stored, "here")
    with pytest.raises(DisagreementError, match=r"augment was a section and is now None.*init\.path"):
        check_agreement(read_config([*BASE, "allow_changes=[augment]"]), stored, "here")


def test_streams_may_move_but_not_change_their_shares():
    def mixed(local: str, share: float) -> list[str]:
        streams = f"[{{local: {local}, proportion: {share}}}, {{local: c, proportion: 1}}]"
        return ["yamls/edm2.yaml", "data.local=null", f"data.streams={streams}"]

    stored = to_yaml(read_config(mixed("a", 2)))
    check_agreement(read_config(mixed("b", 2)), stored, "here")
    with pytest.raises(DisagreementError, match=r"data\.streams was \[\{'proportion': 2\.0\}"):
        check_agreement(read_config(mixed("a", 3)), stored, "here")


NAMED_KEYS = {
    "": ["seed", "global_batch_size"],
    "model.": ["dtype"],
    "data.": ["streams", "streams.proportion", "shuffle", "class_balanced", "x_flip", "num_canonical_nodes"],
    "augment.": ["p", "x_flip", "y_flip", "scale", "rotation", "anisotropy", "translation"],
    "loss.": ["P_mean", "P_std", "label_dropout"],
    "optimizer.": ["ref_lr", "ref_batches", "rampup", "betas", "eps"],
    "numerics.": ["tf32", "reduced_precision_reduction"],
}
ALWAYS_THERE = {"data", "model", "loss", "optimizer", "ema", "checkpoints", "samples", "logging", "numerics"}


def test_every_key_says_whether_it_may_change():
    """All but the sections that are always there, which are no value of their own."""
    silent = {name: field for name, field in all_keys(Config) if resume_of(field) is None}
    assert silent.keys() == ALWAYS_THERE
    assert all(section_in(field) for field in silent.values())


def test_what_enters_the_result_is_not_free():
    """A second list on purpose: a key that became free by mistake would let a resumed run change its result."""
    said = {name: resume_of(field) for name, field in all_keys(Config)}
    assert {said[section + key] for section, keys in NAMED_KEYS.items() for key in keys} == {NAMED}
    fixed = {name for name in said if name.startswith("model.")} - {"model.dtype"} | {"ema.sigma_rels", "augment"}
    assert {said[name] for name in fixed} == {FIXED}
    assert {name for name, resume in said.items() if resume is FIXED} <= fixed


@pytest.mark.parametrize("section", ["init", "fsdp", "checkpoints", "samples", "logging"])
def test_what_does_not_enter_the_result_is_free(section: str):
    assert {resume_of(field) for name, field in all_keys(Config) if name.startswith(f"{section}.")} == {FREE}
