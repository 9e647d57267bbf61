"""The model of memory and traffic against what real steps and real ranks hold, have in memory and send."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.commands import ROOT, launch, run
from helpers.memory_ranks import peak_between_operations
from recipe.configuration.reader import read_config
from recipe.configuration.schema import FSDP
from recipe.edm2.networks.precond import Precond
from recipe.planning.memory import (
    Activations,
    Layout,
    LiveBytes,
    Traffic,
    largest_microbatch,
    record_step,
    state_bytes,
    units,
    working_bytes,
)
from recipe.planning.plan import build
from recipe.planning.sizes import checkpoint_bytes, count

# With attention, both resolutions, skips, dropout and every kind of layer; 15.8 M and 1.2 M parameters
MEASURED: dict[str, Any] = dict(
    img_resolution=8,
    img_channels=3,
    label_dim=10,
    model_channels=150,
    channel_mult=[1, 2],
    num_blocks=1,
    attn_resolutions=[4],
    channels_per_head=50,
)
SMALL = MEASURED | dict(model_channels=48, channel_mult=[1, 2, 3], channels_per_head=48, dropout=0.1)


def network(arguments: dict[str, Any], device: str = "meta", checkpointing: bool = False, **more: Any) -> Precond:
    with torch.device(device):
        net = Precond(**arguments, **more)
    net.unet.activation_checkpointing = checkpointing
    return net


# State


@pytest.mark.parametrize("shards", [1, 2, 7, 64, 1024])
def test_the_fullest_rank_holds_the_first_chunk_of_every_parameter(shards: int):
    net, layout = (
        build(read_config([str(ROOT / "yamls" / "img512-xxl.yaml"), "data.local=none"])),
        Layout(2 * shards, FSDP(shard=shards)),
    )
    held = sum(parameter.chunk(shards)[0].numel() for parameter in net.parameters())
    state = state_bytes(net, 3, layout)
    assert state == {
        "weights": 4 * held,
        "gradients": 4 * held,
        "Adam": 8 * held,
        "averages": 12 * held,
        "buffers": 4 * 4 * (2 * 448 + 2 * 128),
    }
    blocks, rest = units(net)
    assert len(blocks) == 15 + 21  # of the encoder and of the decoder
    assert sum(parameter.numel() for unit in (*blocks, rest) for parameter in unit) == count(net)


def test_ddp_holds_everything_and_gradients_twice():
    net = network(SMALL)
    whole = 4 * count(net)
    assert "DDP buckets" not in state_bytes(net, 2, Layout(1))
    assert state_bytes(net, 2, Layout(4))["DDP buckets"] == whole == state_bytes(net, 2, Layout(4))["weights"]
    assert working_bytes(net, Layout(4)) == 0


# Activations, against a real training step on the CPU


@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "checkpointed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_activations_are_those_of_a_real_step(dtype: torch.dtype, checkpointing: bool):
    real = network(SMALL, "cpu", checkpointing, dtype=dtype)
    activations = Activations.of(network(SMALL, "meta", checkpointing, dtype=dtype))
    for images in (2, 4, 7):
        record_step(real, images)
        peak = peak_between_operations(lambda images=images: record_step(real, images)) - 4 * count(real)
        assert activations.peak(images) == max(record_step(real, images))
        assert activations.peak(images) == pytest.approx(peak, rel=0.01)


def test_saved_tensors_are_those_of_a_real_forward():
    def forward(net: Precond) -> torch.Tensor:
        out = net(torch.zeros(4, 3, 8, 8, device=device), torch.ones(4, device=device))
        assert isinstance(out, torch.Tensor)
        return out

    real, device = network(SMALL, "cpu"), "cpu"
    present = {tensor.untyped_storage().data_ptr() for tensor in (*real.parameters(), *real.buffers())}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = forward(real)
    measured = sum(size for pointer, size in saved.items() if pointer not in present)
    meta, device = network(SMALL), "meta"
    with LiveBytes([*meta.parameters(), *meta.buffers()]) as live:
        modelled = forward(meta)
    assert live.live == pytest.approx(measured, rel=0.02)
    assert modelled.shape == out.shape


# Traffic and fit


def test_largest_microbatch_divides_the_share_and_fits():
    def need(images: int) -> int:
        return 100 + 10 * images

    assert [largest_microbatch(12, capacity, need) for capacity in (1000, 220, 219, 160, 150, 110, 109)] == [
        12,
        12,
        6,
        6,
        4,
        1,
        None,
    ]


def test_traffic_of_rings():
    net = network(SMALL)
    weights, two = 4 * count(net), Layout(2, FSDP())
    assert Traffic.of(net, Layout(1), 3) == Traffic(0, 0)
    assert Traffic.of(net, Layout(4), 3) == Traffic(0, 2 * weights * 3 // 4)
    assert Traffic.of(net, Layout(8, FSDP(shard=1)), 3) == Traffic(0, 3 * (2 * weights * 7 // 8))
    whole, rest = 4 * two.gathered(list(net.parameters())), 4 * two.gathered(units(net)[1])
    assert Traffic.of(net, two, 5) == Traffic(5 * (2 * (whole - rest) + rest + whole) // 2, 0)
    kept = FSDP(reshard_after_forward=False)
    assert Traffic.of(net, Layout(2, kept), 5) == Traffic(5 * (whole + whole) // 2, 0)
    half = FSDP(reshard_after_forward=False, gather_dtype="float16")
    assert Traffic.of(net, Layout(2, half), 1) == Traffic((whole // 2 + whole) // 2, 0)


@pytest.mark.parametrize(
    ("ranks", "fsdp", "sent", "leaves"),
    [
        (8, None, Traffic(0, 7), 0),
        (16, None, Traffic(0, 7), 7),  # one ring through both nodes
        (16, FSDP(), Traffic(100, 0), 100),
        (
            16,
            FSDP(shard=8),
            Traffic(100, 7),
            8 * 7,
        ),  # shards within a node; each rank's replica is elsewhere
        (16, FSDP(shard=2), Traffic(100, 7), 2 * 7),
        (64, FSDP(shard=16), Traffic(100, 7), 100 + 8 * 7),
    ],
)
def test_what_leaves_a_node_of_8(ranks: int, fsdp: FSDP | None, sent: Traffic, leaves: int):
    assert sent.leaves_node(Layout(ranks, fsdp), ranks_per_node=8) == leaves


# Ranks


# (fsdp, microbatches) for each number of ranks: what is measured on them
CASES: dict[int, list[tuple[dict[str, Any] | None, int]]] = {
    1: [(None, 1), ({}, 2)],
    2: [(None, 2), ({}, 2)],
    4: [
        ({"shard": 2, "activation_checkpointing": True}, 2),
        ({"reshard_after_forward": False, "gather_dtype": "bfloat16"}, 1),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "ranks",
    [
        1,
        pytest.param(
            2, marks=pytest.mark.alone
        ),  # what a rank that runs ahead sends is in the memory of one that waits
        pytest.param(4, marks=[pytest.mark.alone, pytest.mark.soak]),
    ],
)
def test_ranks_hold_and_send_what_the_plan_says(ranks: int, tmp_path: Path):
    cases = [
        {"network": MEASURED, "sigma_rels": [0.05, 0.1], "fsdp": fsdp, "images": 2, "microbatches": microbatches}
        for fsdp, microbatches in CASES[ranks]
    ]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    command = launch(ranks, tmp_path / "cases.json", tmp_path, script=ROOT / "tests" / "helpers" / "memory_ranks.py")
    # glibc then gives every large block back when it is freed, so that resident memory is what is held
    done = run(command, env={"MALLOC_MMAP_THRESHOLD_": "65536"})
    assert done.returncode == 0, done.stdout + done.stderr
    answers = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(ranks)]
    for case, *found in zip(cases, *answers, strict=True):
        compare(case, found, Layout(ranks, None if case["fsdp"] is None else FSDP(**case["fsdp"])))


def compare(case: dict[str, Any], found: list[dict[str, Any]], layout: Layout) -> None:
    """Hold what the ranks of one case measured against the plan."""
    fsdp, averages = layout.fsdp, len(case["sigma_rels"])
    net = network(MEASURED, checkpointing=fsdp is not None and fsdp.activation_checkpointing)
    state = state_bytes(net, averages, layout)
    traffic = Traffic.of(net, layout, case["microbatches"])
    peak = sum(state.values()) + working_bytes(net, layout) + Activations.of(net).peak(case["images"])
    assert found[0]["held"] == {kind: size for kind, size in state.items() if kind != "DDP buckets"}
    if layout.shards == 1:
        assert sum(found[0]["held"].values()) - found[0]["held"]["gradients"] == checkpoint_bytes(net, averages)
    for rank in found:
        assert rank["sent"]["DDP buckets"] == state.get("DDP buckets", 0)
        assert all(size <= state[kind] for kind, size in rank["held"].items())
        assert sum(rank["held"].values()) == pytest.approx(sum(found[0]["held"].values()), rel=0.01)
        assert rank["resident"] == pytest.approx(sum(state.values()), rel=0.1)
        assert [rank["sent"]["shards"], rank["sent"]["replicas"]] == pytest.approx([traffic.shards, traffic.replicas])
        assert 0.98 * rank["peak"] < peak < 1.35 * rank["peak"]
