"""Published networks and training states convert to snapshots that compute the same."""

import io
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.golden_data import load, relative_error, under
from helpers.published_pickles import (
    Persistent,
    archived,
    official_modules,
    persistent,
    pickled,
    snapshot_table,
    training_table,
    vae_encoder,
    write_published,
)
from helpers.small_snapshots import NETWORK, outputs, small_network
from recipe.edm2.latents import STABLE_DIFFUSION, Whitening
from recipe.edm2.networks.precond import Precond
from recipe.weights.inert_pickles import read_pickle
from recipe.weights.official import OfficialError, OfficialNetwork, read_official, time_and_length
from recipe.weights.official_training import network_from_shapes, read_training_state
from recipe.weights.pickled_tensors import TENSOR_NAMES, EmbeddedStorages, tensor_from
from recipe.weights.snapshots import buffer_names


def rebuilt(official: OfficialNetwork) -> Precond:
    net = Precond(**official.network).eval()
    net.load_state_dict({name: tensor.float() for name, tensor in official.tensors.items()})
    return net


def rounded(net: Precond) -> Precond:
    """The network with all its numbers as float16 has them, as in a published file."""
    net.load_state_dict({name: tensor.half().float() for name, tensor in net.state_dict().items()})
    return net


@pytest.mark.parametrize("protocol", [4, 5])
def test_a_published_network(protocol: int, tmp_path: Path):
    net = rounded(small_network(3))
    path = tmp_path / "a.pkl"
    path.write_bytes(pickled(snapshot_table(net, NETWORK), protocol))
    official = read_official(path)
    assert official.network == NETWORK
    assert list(official.tensors) == list(net.state_dict())
    for name, tensor in net.state_dict().items():
        assert tensor.shape == official.tensors[name].shape
        assert torch.equal(tensor, official.tensors[name].float()), name
    assert relative_error(outputs(rebuilt(official)), outputs(net)) <= 1e-5
    kinds = {name: tensor.dtype for name, tensor in official.tensors.items()}
    assert {name for name, dtype in kinds.items() if dtype == torch.float32} == buffer_names(NETWORK)


def test_the_reference_network(tmp_path: Path):
    """Weights of the official implementation, through a file in its layout, against the outputs that it had."""
    golden, metadata = load("network")
    arguments = json.loads(metadata["config"])
    net = Precond(**arguments).eval()
    net.load_state_dict(under(golden, "weights"))
    official = read_official(write_published(tmp_path / "a.pkl", net, arguments))
    converted = rebuilt(official)
    given = golden["in/x"], golden["in/sigma"], golden["in/labels"]
    assert relative_error(converted(*given), rounded(net)(*given)) <= 1e-5  # pyright: ignore
    assert relative_error(converted(*given), golden["out/denoised"]) <= 2e-3  # what float16 leaves # pyright: ignore


@pytest.mark.parametrize(
    "changes",
    [
        {"label_dim": 0},
        {"img_channels": 4, "dropout": 0.1},
        {"attn_resolutions": [], "sigma_data": 0.6, "logvar_channels": 8},
        {"clip_act": None, "channel_mult_noise": 1, "channel_mult_emb": 2, "res_balance": 0.4},
    ],
    ids=str,
)
def test_arguments(changes: dict[str, Any], tmp_path: Path):
    arguments = {**NETWORK, **changes}
    net = rounded(small_network(2, **changes))
    official = read_official(write_published(tmp_path / "a.pkl", net, {**arguments, "resample_filter": [1, 1]}))
    assert official.network == arguments
    assert all(torch.equal(t, official.tensors[n].float()) for n, t in net.state_dict().items())


def test_arguments_by_position(tmp_path: Path):
    table = snapshot_table(small_network(0), NETWORK)
    rest = {name: value for name, value in NETWORK.items() if not name.startswith(("img", "label"))}
    table["ema"].meta["state"] |= dict(_init_args=(8, 1, 10, False, 0.4), _init_kwargs=rest)
    (tmp_path / "a.pkl").write_bytes(pickled(table))
    assert read_official(tmp_path / "a.pkl").network == {**NETWORK, "sigma_data": 0.4}


def test_facts_of_the_data(tmp_path: Path):
    """Pixels or latents, and their whitening, follow from the encoder."""
    net, changes = small_network(0, img_channels=4), {**NETWORK, "img_channels": 4}
    facts = read_official(write_published(tmp_path / "a.pkl", net, changes, vae_encoder())).facts
    assert (facts.kind, facts.whitening, facts.label_dim) == ("latents", STABLE_DIFFUSION, 10)
    assert facts.vae == "stabilityai/sd-vae-ft-mse"
    own = vae_encoder(vae_name="own", raw_mean=[1, 2, 3, 4], raw_std=[1.0, 1.0, 2.0, 2.0])
    facts = read_official(write_published(tmp_path / "b.pkl", net, changes, own)).facts
    assert (facts.vae, facts.whitening) == ("own", Whitening((1, 2, 3, 4), (1, 1, 2, 2)))
    facts = read_official(write_published(tmp_path / "c.pkl", small_network(0), NETWORK)).facts
    assert (facts.kind, facts.whitening, facts.img_resolution) == ("pixels", None, 8)
    foreign = Persistent("OtherEncoder", {"_init_args": (), "_init_kwargs": {}})
    assert read_official(write_published(tmp_path / "d.pkl", small_network(0), NETWORK, foreign)).facts.kind is None


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("edm2-img512-xs-2147483-0.135.pkl", (2**31, 0.135)),
        ("s3://bucket/edm2-img512-xs-uncond-2147483-0.045.pkl", (2**31, 0.045)),
        ("edm2-img64-s-1073741-0.075.pkl", (2**30, 0.075)),
        ("edm2-img512-xs-0134217-0.165.pkl", (2**27, 0.165)),
        ("network-snapshot-0008388-0.050.pkl", (2**23, 0.05)),
        ("edm2-own-0001000-0.100.pkl", (1_000_000, 0.1)),
        ("edm2-img512-l-ddo.pkl", None),
        ("edm2-img512-xs-2147483-0.135.pkl.pkl", None),
    ],
)
def test_time_and_length(name: str, found: tuple[int, float] | None):
    assert time_and_length(name) == found


STRIDED = {
    "channels last": torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last),
    "transposed": torch.randn(4, 5).t(),
    "a part": torch.arange(20.0)[4:9],
    "a number": torch.tensor(3.0, dtype=torch.bfloat16),
    "empty": torch.empty(0, 3),
    "whole numbers": torch.arange(6).reshape(2, 3),
}


@pytest.mark.parametrize("name", STRIDED)
def test_tensors(name: str):
    record = read_pickle(io.BytesIO(pickle.dumps(STRIDED[name])), TENSOR_NAMES)
    read = tensor_from(record, EmbeddedStorages(), name)
    assert torch.equal(read, STRIDED[name]) and read.dtype == STRIDED[name].dtype and read.is_contiguous()


def state_file(folder: Path, width: int = 16) -> tuple[Path, list[Precond], dict[str, Any]]:
    changes: dict[str, Any] = {"model_channels": width, "channels_per_head": width}
    nets = [small_network(seed, **changes) for seed in (1, 2, 3)]
    path = folder / "training-state-0000004.pt"
    path.write_bytes(archived(training_table(nets[0], {0.05: nets[1], 0.10: nets[2]}, 4096)))
    return path, nets, {**NETWORK, **changes}


def test_a_training_state(tmp_path: Path):
    path, nets, arguments = state_file(tmp_path)
    state = read_training_state(path, arguments)
    assert (state.nimg, list(state.averages), state.network) == (4096, [0.05, 0.1], arguments)
    for net, tensors in zip(nets, [state.weights, *state.averages.values()], strict=True):
        assert all(torch.equal(t, tensors[n]) and t.dtype == tensors[n].dtype for n, t in net.state_dict().items())
        assert all(tensors[name].shape == (1,) for name in tensors if name.endswith("gain"))


def test_a_training_state_tells_its_network(tmp_path: Path):
    """Heads of 64 channels, as the published networks have; of others it must be told."""
    path, nets, _ = state_file(tmp_path, 64)
    state = read_training_state(path)
    net = Precond(**state.network).eval()
    net.load_state_dict(state.averages[0.1])
    assert relative_error(outputs(net), outputs(nets[2])) <= 1e-5
    path, _, _ = state_file(tmp_path, 16)
    with pytest.raises(OfficialError, match=r"attention heads, .* by --network"):
        read_training_state(path)


@pytest.mark.parametrize("changes", [{}, {"label_dim": 0}, {"num_blocks": 3, "channel_mult": [1, 2, 3]}], ids=str)
def test_networks_from_shapes(changes: dict[str, Any]):
    given = {**NETWORK, **changes, "model_channels": 64, "channels_per_head": 64}
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in Precond(**given).state_dict().items()}
        told = Precond(**network_from_shapes(shapes))
    assert {name: tuple(tensor.shape) for name, tensor in told.state_dict().items()} == shapes
    assert [block.num_heads for block in told.blocks()] == [block.num_heads for block in Precond(**given).blocks()]


REFUSED: dict[str, tuple[Any, str]] = {
    "encoder alone": ({"encoder": vae_encoder()}, "holds no network, only encoder; name a file with `ema`"),
    "no network": ({"ema": None, "loss_fn": None}, "holds no network, only ema, loss_fn"),
    "no table": ([1, 2], "holds no table with a network"),
    "of EDM": ({"ema": Persistent("EDMPrecond", {})}, "a network of class EDMPrecond, but this recipe has Precond"),
    "a number": ({"ema": 3}, "a network of class something else"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_contents(name: str, tmp_path: Path):
    value, said = REFUSED[name]
    (tmp_path / "a.pkl").write_bytes(pickled(value))
    with pytest.raises(OfficialError) as caught:
        read_official(tmp_path / "a.pkl")
    assert said in str(caught.value)


ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "classes": ({"label_dim": 9}, "unet.emb_label.weight of shape [32, 10], where its network needs [32, 9]"),
    "no classes": ({"label_dim": 0}, "the further tensor unet.emb_label.weight for the network"),
    "unknown": ({"kernel": 3}, "the argument kernel, which the network of this recipe does not have"),
    "filter": ({"resample_filter": [1, 3, 3, 1]}, "a resample_filter other than [1, 1]"),
    "blocks": ({"num_blocks": 2}, "no tensor unet."),
    "absurd": ({"model_channels": 10**9}, "the argument model_channels with a value that it cannot have"),
    "halves": ({"img_resolution": 7}, "arguments that contradict each other"),
    "share": ({"res_balance": 3.0}, "the argument res_balance with a value that it cannot have"),
    "truth": ({"img_channels": True}, "the argument img_channels with a value that it cannot have"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_that_do_not_fit(name: str, tmp_path: Path):
    changes, said = ARGUMENTS[name]
    with pytest.raises(OfficialError) as caught:
        read_official(write_published(tmp_path / "a.pkl", small_network(0), {**NETWORK, **changes}))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_weights_that_are_not_finite(tmp_path: Path):
    net = small_network(0)
    net.unet.out_gain.fill_(float("nan"))
    with pytest.raises(OfficialError, match=r"unet.out_gain with numbers that are not finite"):
        read_official(write_published(tmp_path / "a.pkl", net, NETWORK))


def test_the_helper_writes_what_pickle_would_rebuild(tmp_path: Path):
    """The files are no invention of the reader: Python's own pickle follows them to the call that is never made."""
    data = pickled(snapshot_table(small_network(0), NETWORK))
    with official_modules(), pytest.raises(AssertionError, match="was rebuilt"):
        pickle.loads(data)
    assert persistent(small_network(0), NETWORK).meta["class_name"] == "Precond"


MOMENTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "none of a parameter": (lambda optimizer: optimizer["state"].pop(3), "no moments of unet."),
    "of other parameters": (
        lambda optimizer: optimizer["param_groups"][0]["params"].pop(),
        "an optimizer of other parameters",
    ),
    "another optimizer": (
        lambda optimizer: optimizer["state"][0].update(max_exp_avg_sq=torch.ones([])),
        "other than Adam",
    ),
    "another shape": (
        lambda optimizer: optimizer["state"][5].update(exp_avg=torch.ones(3)),
        "of another shape, or not finite",
    ),
    "not finite": (
        lambda optimizer: optimizer["state"][5]["exp_avg_sq"].fill_(math.nan),
        "of another shape, or not finite",
    ),
    "other steps": (lambda optimizer: optimizer["state"][5]["step"].fill_(7), "updated more or less often than others"),
    "no step": (
        lambda optimizer: optimizer["state"][5].update(step=torch.tensor(0.5)),
        "a number of updates that cannot be",
    ),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_moments_that_are_none(name: str, tmp_path: Path):
    change, said = MOMENTS[name]
    table = training_table(small_network(1), {0.05: small_network(2)}, 4096)
    change(table["optimizer"])
    (tmp_path / "training-state-0000004.pt").write_bytes(archived(table))
    with pytest.raises(OfficialError, match=said):
        read_training_state(tmp_path / "training-state-0000004.pt", NETWORK)


def test_a_state_without_moments(tmp_path: Path):
    """One that was stored before the first step."""
    table = training_table(small_network(1), {0.05: small_network(2)}, 0)
    table["optimizer"]["state"] = {}
    (tmp_path / "training-state-0000000.pt").write_bytes(archived(table))
    assert read_training_state(tmp_path / "training-state-0000000.pt", NETWORK).moments is None
