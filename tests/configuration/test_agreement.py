"""A configuration may go on with a run only if it would give the same result."""

import re

import pytest

from recipe.configuration.agreement import DisagreementError, check_agreement
from recipe.configuration.reader import read_config, to_yaml

BASE = ["yamls/edm2.yaml", "data.local=x"]


def check(*overrides: str) -> None:
    check_agreement(read_config([*BASE, *overrides]), to_yaml(read_config(BASE)), "runs/edm2")


@pytest.mark.parametrize(
    "override",
    [
        "duration=102400", "fsdp={}", "device=cpu", "device_train_microbatch_size=8", "checkpoints.keep=5",
        "ema.snapshot_interval=3200", "data.num_workers=0", "data.remote=s3://b/elsewhere", "samples.interval=null",
        "logging.progress_bar=false",
    ],
)  # fmt: skip
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
        return ["yamls/edm2.yaml", "data.local=null",
                f"data.streams=[{{local: {local}, proportion: {share}}}, {{local: c, proportion: 1}}]"]  # fmt: skip

    stored = to_yaml(read_config(mixed("a", 2)))
    check_agreement(read_config(mixed("b", 2)), stored, "here")
    with pytest.raises(DisagreementError, match=r"data\.streams was \[\{'proportion': 2\.0\}"):
        check_agreement(read_config(mixed("a", 3)), stored, "here")
