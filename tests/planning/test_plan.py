"""The dry run: the paper's sizes, what it prints, and what it refuses."""

import resource
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.commands import ROOT, assert_refused, command_line, run, train_arguments
from helpers.forks import train
from recipe.configuration.gpus import COMMON, GPUS
from recipe.configuration.problems import ConfigError
from recipe.configuration.reader import read_config
from recipe.configuration.rules import broken_rules_of_world
from recipe.configuration.schema import Config
from recipe.edm2.networks.flops import macs_per_image
from recipe.edm2.networks.precond import Precond
from recipe.planning.plan import build, images_of_spans, print_plan, readable
from recipe.planning.sizes import count, snapshot_bytes
from recipe.training.callbacks import snapshot_tensors
from recipe.weights.snapshots import SnapshotInfo, save_snapshot

# Mparams (Table 6), and multiply-adds of convolutions, linear layers and attention, 1% below the paper's Gflops
PRESETS = {
    "img512-xs": (124.71, 44.95), "img512-s": (280.21, 100.82), "img512-m": (497.81, 178.95),
    "img512-l": (777.50, 279.34), "img512-xl": (1119.28, 401.99), "img512-xxl": (1523.16, 546.90),
}  # fmt: skip
STEPS = {"img512-xs": 2**20, "img512-xl": 655360, "img64-s": 2**19, "img64-xl": 327680}
GIB = 2**30

SMALL: dict[str, Any] = dict(
    img_resolution=8,
    img_channels=3,
    label_dim=10,
    model_channels=48,
    channel_mult=[1, 2],
    num_blocks=1,
    attn_resolutions=[4],
    channels_per_head=48,
)


def preset(name: str, *overrides: str) -> Config:
    return read_config([str(ROOT / "yamls" / f"{name}.yaml"), "data.local=none", *overrides])


def plan_of(config: Config, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What the dry run prints, by the names of its lines."""
    print_plan(config)
    return {line[:17].strip(): line[18:] for line in capsys.readouterr().out.splitlines()}


# Sizes


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "yamls").glob("img*.yaml")))
def test_presets_have_the_papers_sizes(name: str):
    config = preset(name)
    net = build(config)
    if name in PRESETS:
        assert (round(count(net) / 1e6, 2), round(macs_per_image(net) / 1e9, 2)) == PRESETS[name]
    else:  # ImageNet-64 has one channel less: 2 * 9 * model_channels fewer weights, about 0.01%
        assert count(net) / 1e6 == pytest.approx(PRESETS[name.replace("img64", "img512")][0], abs=0.02)
    if name in STEPS:
        assert images_of_spans(config)[0] == STEPS[name] * 2048


@pytest.mark.alone
def test_plan_of_the_largest_network_is_quick_and_allocates_nothing(capsys: pytest.CaptureFixture[str]):
    config = preset("img512-xxl", "dry_run=true", "world_size=128x8", "fsdp.shard=8")
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = plan_of(config, capsys)
    assert time.monotonic() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500e3  # kB; the weights alone are 6.1 GB
    assert lines["parameters"] == "1523.16 M"
    assert lines["compute"].startswith("546.90 GFLOPs")
    assert lines["steps"] == "458752 of 2048 images"
    assert lines["ranks"] == "1024 = 128 x 8; FSDP2, 128 copies of the state in 8 shards, gathered in float32"
    assert lines["microbatch"] == "2 of a rank's 2 images per step; activations in float16"
    one = 1523.162371 * 1e6 * 4 / 8 / GIB
    state = {"weights": one, "gradients": one, "Adam": 2 * one, "averages": 2 * one}
    for kind, size in state.items():
        assert float(lines[kind].split()[0]) == pytest.approx(size, abs=1e-3), kind
    parts = [float(lines[part].split()[0]) for part in (*state, "buffers", "gathering", "activations", "allowance")]
    assert float(lines["memory per rank"].split()[0]) == pytest.approx(sum(parts), abs=0.01)
    assert set(COMMON) <= lines.keys()
    assert lines["snapshots"] == "3.05 GB each; 2 x 112 in the run: 682 GB"
    assert lines["checkpoints"] == "30.5 GB each; 112 in the run: 3.41 TB; 2 stay: 60.9 GB"


def test_plan_names_what_fits_and_what_to_do_otherwise(capsys: pytest.CaptureFixture[str]):
    many = ",".join(f"{number / 1000:.3f}" for number in range(50, 66))  # averages make it large, and few blocks quick
    plan = ["dry_run=true", "world_size=32", "model.num_blocks=1", f"ema.sigma_rels=[{many}]"]
    lines = plan_of(preset("img512-xxl", *plan, "gpu=A100-80GB", "device_train_microbatch_size=auto"), capsys)
    chosen = int(lines["microbatch"].split()[0])
    assert lines["A100-80GB"].startswith(
        f"fits microbatches of {chosen}: {lines['memory per rank'].split()[0]} of 79.1"
    )
    assert 64 % chosen == 0
    assert chosen < 64
    for overrides, advice in (
        ([], "shard the state with fsdp={}"),
        (["fsdp.shard=2"], "set fsdp.activation_checkpointing=true"),
        (["fsdp.shard=1", "fsdp.activation_checkpointing=true"], "use more shards"),
    ):
        lines = plan_of(preset("img512-xxl", *plan, "gpu=RTX4090-24GB", *overrides), capsys)
        assert lines["RTX4090-24GB"].startswith("too small: "), overrides
        assert lines["RTX4090-24GB"].endswith(f"of 23.5 GiB for 1 image; {advice}")
    lines = plan_of(preset("img512-xs", *plan, "device=cpu"), capsys)
    assert not lines.keys() & {*GPUS, "allowance"}
    assert "float32" in lines["microbatch"]


# Files


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_snapshot_bytes_are_those_of_a_file(tmp_path: Path, dtype: torch.dtype):
    path = tmp_path / "snapshot.safetensors"
    save_snapshot(path, snapshot_tensors(Precond(**SMALL), dtype), SnapshotInfo(SMALL, 0, 0.05))
    with open(path, "rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
    assert snapshot_bytes(Precond(**SMALL), dtype) == path.stat().st_size - header


def test_files_of_the_run(capsys: pytest.CaptureFixture[str]):
    overrides = [
        "duration=10ba",
        "ema.snapshot_interval=4ba",
        "ema.sigma_rels=[0.05]",
        "ema.snapshot_keep=2",
        "checkpoints.interval=5ba",
        "checkpoints.keep=-1",
    ]
    lines = plan_of(preset("img512-xs", *overrides), capsys)
    assert lines["snapshots"] == "249 MB each; 3 in the run: 748 MB; 2 stay: 499 MB"
    assert lines["checkpoints"] == "2 GB each; 2 in the run: 3.99 GB"
    texts = {0: "0 B", 999: "999 B", 1523: "1.52 kB", 999_999: "1 MB", 10**18: "1000 PB"}
    assert {size: readable(size) for size in texts} == texts


# Ranks


RULES = {
    "no number": (
        ["world_size=3x"],
        "world_size = '3x': must be a number of ranks, or nodes x ranks per node; fix: write for example 1024 or 128x8",
    ),
    "three factors": (["world_size=2x2x2"], "world_size = '2x2x2': must be a number of ranks"),
    "no ranks": (["world_size=0"], "world_size = 0: must be a number of ranks"),
    "no nodes": (["world_size=0x8x"], "world_size = '0x8x': must be"),
    "a fraction": (["world_size=1.5"], "world_size = 1.5: must be a valid integer or a valid string"),
    "not a dry run": (
        ["world_size=8", "dry_run=false"],
        "world_size = 8: only serves to plan, but dry_run is false; fix: set dry_run=true or world_size=null",
    ),
    "GPU without its memory": (["gpu=a100"], "fix: did you mean A100-40GB or A100-80GB?"),
    "GPU of another memory": (["gpu=H100-96GB"], "fix: did you mean H100-80GB?"),
    "GPU with a typing error": (["gpu=L4OS-48GB"], "fix: did you mean L40S-48GB?"),
    "unknown GPU": (["gpu=???x"], "gpu = '???x': must be one of A10-24GB, A100-40GB, "),
    "GPU without a dry run": (["gpu=L40S-48GB", "dry_run=false"], "gpu = L40S-48GB: only serves to plan"),
    "GPU on a CPU": (["gpu=L40S-48GB", "device=cpu"], "gpu = L40S-48GB: plans for a GPU, but device is cpu"),
}


@pytest.mark.parametrize(("overrides", "message"), RULES.values(), ids=RULES)
def test_rules_of_planning(overrides: list[str], message: str):
    arguments = {"dry_run": "true"} | dict(item.split("=") for item in overrides)
    with pytest.raises(ConfigError) as caught:
        preset("img512-s", *(f"{key}={value}" for key, value in arguments.items()))
    assert len(caught.value.problems) == 1
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("ranks", "overrides", "message"),
    [
        ("1024", [], None),
        ("128x8", ["fsdp.shard=8"], None),
        ("3x5", [], "global_batch_size = 2048: must be a multiple of the number of ranks, 15; fix: use 2040 or 2055"),
        ("1024", ["device_train_microbatch_size=4"], "device_train_microbatch_size = 4: must divide a rank's share"),
        ("16x8", ["fsdp.shard=24"], "fsdp.shard = 24: must divide the number of ranks, 128; fix: use 16"),
    ],
)
def test_rules_of_the_planned_ranks(ranks: str, overrides: list[str], message: str | None):
    found = list(broken_rules_of_world(preset("img512-s", "dry_run=true", f"world_size={ranks}", *overrides), 1))
    assert len(found) == (0 if message is None else 1)
    assert message is None or str(found[0]).startswith(message)


def test_command_refuses_ranks_that_do_not_divide_the_batch(digits: Path, tmp_path: Path):
    arguments = train_arguments(digits, tmp_path / "run", "dry_run=true", "world_size=3")
    assert_refused(run(command_line("train.py", *arguments)), "global_batch_size = 16", "the number of ranks, 3")


def test_dry_run_writes_nothing(digits: Path, tmp_path: Path):
    done = train(digits, tmp_path / "run", "dry_run=true", "duration=2ep")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "steps             624 of 16 images" in done.stdout
    assert "ranks             1; it holds the whole state" in done.stdout
    assert not (tmp_path / "run").exists()
