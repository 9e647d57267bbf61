"""The command that converts published weights and back, and what it refuses before and after it has read a file."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.commands import command_line, train_arguments
from helpers.documented import ALL, after_script
from helpers.golden_data import load
from helpers.published_pickles import archived, pickled, training_table, vae_encoder, write_published
from helpers.small_snapshots import NETWORK, TRACKED, outputs, refused_in_process, small_network, stored
from recipe import convert, sample
from recipe.configuration.reader import read_config
from recipe.data.facts import DataFacts
from recipe.edm2.networks.precond import Precond
from recipe.storage.addresses import open_place
from recipe.training.initial_weights import load_initial_weights
from recipe.training.model import DiffusionModel
from recipe.weights.posthoc import reconstruct, solve, usable_snapshots
from recipe.weights.snapshots import (
    SnapshotInfo,
    SnapshotReader,
    list_snapshots,
    load_network,
    save_snapshot,
    snapshot_name,
)
from recipe.weights.state_dicts import published_shapes

NAME = "edm2-img8-xs-0008388-0.050.pkl"
SNAPSHOT = snapshot_name(2**23, 0.05)


def converted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    """Run the command; returns the addresses that it prints."""
    monkeypatch.setattr("sys.argv", ["convert.py", *map(str, arguments)])
    convert.main()
    return capsys.readouterr().out.splitlines()


@pytest.fixture
def published(tmp_path: Path) -> Path:
    return write_published(tmp_path / NAME, small_network(3), NETWORK)


def test_to_a_snapshot(published: Path, tmp_path: Path, monkeypatch, capsys):
    said = converted(monkeypatch, capsys, published, "--out", tmp_path / "out")
    assert said == [str(tmp_path / "out" / SNAPSHOT)]
    net, info = load_network(said[0])
    assert (info.nimg, info.sigma_rel, info.config, info.run) == (2**23, 0.05, "G", None)
    assert (info.network, info.dataset.kind, info.extra) == (NETWORK, "pixels", {"converted_from": NAME})
    reference = small_network(3)
    reference.load_state_dict({name: t.half().float() for name, t in reference.state_dict().items()})
    assert torch.allclose(outputs(net), outputs(reference), atol=1e-5)


def test_what_the_name_does_not_say(published: Path, tmp_path: Path, monkeypatch, capsys):
    named = published.rename(tmp_path / "edm2-img8-l-ddo.pkl")
    said = refused_in_process(convert, [named, "--out", tmp_path / "out"], monkeypatch, capsys)
    assert "its name does not say time and length; add --nimg and --sigma-rel" in said
    target = tmp_path / "ddo.safetensors"
    arguments = [named, "--out", target, "--nimg", "2Gi", "--sigma-rel", "0.07"]
    assert converted(monkeypatch, capsys, *arguments) == [str(target)]
    assert (load_network(target)[1].nimg, load_network(target)[1].sigma_rel) == (2**31, 0.07)


def test_there_and_back(tmp_path: Path, monkeypatch, capsys):
    """The names and shapes of the published weights, in both formats, from which the same snapshot can be made."""
    net = small_network(2)
    source = tmp_path / "s.safetensors"
    save_snapshot(source, stored(net, torch.float16), SnapshotInfo(NETWORK, 64, 0.1))
    for target in (tmp_path / "plain.safetensors", tmp_path / "plain.pt"):
        converted(monkeypatch, capsys, source, "--to", "published", "--out", target)
        plain = load_file(target) if target.suffix == ".safetensors" else torch.load(target, weights_only=True)
        assert plain.keys() == net.state_dict().keys()
        for name, tensor in net.state_dict().items():
            assert torch.equal(plain[name].float().reshape(tensor.shape), tensor.to(plain[name].dtype).float())
            assert plain[name].shape == (() if name.endswith("gain") else tensor.shape)


def test_published_names_are_those_of_the_reference():
    golden, metadata = load("network")
    names = {name.removeprefix("weights/") for name in golden if name.startswith("weights/")}
    net = Precond(**json.loads(metadata["config"]))
    plain = published_shapes(net.state_dict())
    assert plain.keys() == names
    assert all(plain[name].shape == golden[f"weights/{name}"].shape for name in names)


def test_a_training_state(tmp_path: Path, monkeypatch, capsys):
    """Its averages are snapshots that can be combined, its raw weights what a run can begin with."""
    nets = [small_network(seed) for seed in range(3)]
    state = tmp_path / "training-state-0000004.pt"
    state.write_bytes(archived(training_table(nets[0], dict(zip(TRACKED, nets[1:], strict=True)), 4096)))
    like = write_published(tmp_path / NAME, nets[0], NETWORK)
    said = converted(monkeypatch, capsys, state, "--out", tmp_path / "out", "--network", like)
    names = ["weights-00000004096.safetensors", *(snapshot_name(4096, length) for length in TRACKED)]
    assert said == [str(tmp_path / "out" / name) for name in (*names, "adam-00000004096.safetensors")]
    with SnapshotReader(said[-1]) as reader:  # after one step along gradients of ones
        assert reader.info.extra["adam_step"] == 1
        for name, parameter in nets[0].named_parameters():
            assert torch.equal(reader.read(f"exp_avg/{name}"), torch.full_like(parameter, 0.1).detach()), name
            assert reader.read(f"exp_avg_sq/{name}").mean() == pytest.approx(0.001)
    for path, net in zip(said[:-1], nets, strict=True):
        assert torch.equal(outputs(load_network(path)[0]), outputs(net))
    assert load_network(said[0])[1].sigma_rel == 0
    snapshots, target = usable_snapshots(list_snapshots(tmp_path / "out"), None)
    assert (len(snapshots), target) == (2, 4096)


def test_a_run_begins_with_converted_weights(tmp_path: Path, monkeypatch, capsys):
    """The raw weights of a training state go into the network of a run and into its averages."""
    nets = [small_network(seed) for seed in range(2)]
    state = tmp_path / "training-state-0000004.pt"
    state.write_bytes(archived(training_table(nets[0], {0.05: nets[1]}, 4096)))
    like = write_published(tmp_path / NAME, nets[0], NETWORK)
    weights = converted(monkeypatch, capsys, state, "--out", tmp_path / "out", "--network", like)[0]
    model = DiffusionModel(Precond(**NETWORK), [0.05, 0.1])
    overrides = train_arguments(Path("none"), Path("none"), f"init.path={weights}")
    load_initial_weights(model, read_config(overrides), DataFacts())
    for net in (model.net, *(average for _, average in model.averages())):
        assert torch.equal(outputs(net.eval()), outputs(nets[0]))


def test_published_snapshots_can_be_combined(tmp_path: Path, monkeypatch, capsys):
    nets = [small_network(0) for _ in range(4)]
    for index, net in enumerate(nets):
        net.unet.out_gain.fill_(float(index))
        nimg, sigma_rel = 2**23 * (1 + index // 2), TRACKED[index % 2]
        name = f"edm2-img8-xs-{nimg // 1000:07d}-{sigma_rel:.3f}.pkl"
        converted(
            monkeypatch, capsys, write_published(tmp_path / name, net, NETWORK), "--out", tmp_path / "run/snapshots"
        )
    snapshots, target = usable_snapshots(list_snapshots(tmp_path / "run" / "snapshots"), None)
    coefficients, _ = solve(snapshots, target, [0.08], force=True)
    (weights,), _ = reconstruct(snapshots, coefficients, torch.float32)
    expected = sum(float(coefficient) * index for index, coefficient in enumerate(coefficients[:, 0]))
    assert float(weights["unet.out_gain"]) == pytest.approx(expected, rel=1e-5)


def test_from_and_to_object_storage(published: Path, bucket_folder: str, tmp_path: Path, monkeypatch, capsys):
    open_place(bucket_folder).upload(NAME, published)
    address = f"{bucket_folder}/{NAME}"
    (snapshot,) = converted(monkeypatch, capsys, address, "--out", f"{bucket_folder}/out")
    assert snapshot == f"{bucket_folder}/out/{SNAPSHOT}"
    back = f"{bucket_folder}/plain.pt"
    assert converted(monkeypatch, capsys, snapshot, "--to", "published", "--out", back) == [back]
    assert {entry.name for entry in open_place(bucket_folder).list()} == {NAME, f"out/{SNAPSHOT}", "plain.pt"}
    again = refused_in_process(convert, [address, "--out", f"{bucket_folder}/out"], monkeypatch, capsys)
    assert f"{SNAPSHOT}: is there already, and is not replaced" in again
    missing = refused_in_process(
        convert, [f"{bucket_folder}/{NAME[:-9]}0.100.pkl", "--out", tmp_path], monkeypatch, capsys
    )
    assert "0.100.pkl" in missing and "no such file; check the address" in missing


OUT = ["--out", "WORK/out"]
REFUSED: dict[str, tuple[list[str], str]] = {
    "missing": (["WORK/a-0008388-0.050.pkl", *OUT], "a-0008388-0.050.pkl: no such file; check the path"),
    "missing state": (["WORK/a.pt", *OUT], "WORK/a.pt: no such file; check the path"),
    "missing snapshot": (["WORK/a.safetensors", "--to", "published", "--out", "WORK/b.pt"], "no such snapshot"),
    "missing network": (["WORK/a.pt", *OUT, "--network", "WORK/b.pkl"], "WORK/b.pkl: no such file"),
    "folder": (["WORK/d-0008388-0.050.pkl", *OUT], "d-0008388-0.050.pkl: is a folder; name a file in it"),
    "folder as snapshot": (["WORK/d.safetensors", "--to", "published", "--out", "WORK/b.pt"], "is a folder; name a"),
    "other store": (["https://host/a-0008388-0.050.pkl", *OUT], "give a local path or s3://bucket/prefix"),
    "kind": (["WORK/a.ckpt", *OUT], "must be a .pkl, a .pt or a .safetensors file"),
    "to": (["WORK/a.pkl", *OUT, "--to", "publish"], "--to publish: must be one of snapshot, published, hub; did you"),
    "at once": (["WORK/a.pkl", *OUT, "--to", "published"], "cannot become published weights at once; convert it to"),
    "snapshot already": (["WORK/a.safetensors", *OUT], "is a snapshot already; add --to published or"),
    "idle time": (["WORK/a.pt", *OUT, "--nimg", "8Mi"], "--nimg 8Mi: is for a .pkl alone"),
    "idle network": (["WORK/a.pkl", *OUT, "--network", "b.pkl"], "--network b.pkl: is for a training state alone"),
    "network": (["WORK/a.pt", *OUT, "--network", "b.pt"], "--network b.pt: must be a .pkl file of the same run"),
    "long": (["WORK/a.pkl", *OUT, "--sigma-rel", "0.3"], "--sigma-rel 0.3: must be below 12^-0.5 = 0.2887"),
    "decimals": (["WORK/a.pkl", *OUT, "--sigma-rel", "0.1234"], "--sigma-rel 0.1234: must have at most 3 decimals"),
    "none": (["WORK/a.pkl", *OUT, "--sigma-rel", "0"], "--sigma-rel 0: must be above 0"),
    "time": (["WORK/a.pkl", *OUT, "--nimg", "8ba"], "--nimg 8ba: must be in images"),
    "length in the name": (["WORK/a-0008388-0.500.pkl", *OUT], "its name says sigma_rel 0.5; give another --sigma-rel"),
    "state to a file": (["WORK/a.pt", "--out", "WORK/b.safetensors"], "must be a folder, for several files come"),
    "snapshot to .pt": (["WORK/a.pkl", "--out", "WORK/b.pt"], "a snapshot must end with .safetensors"),
    "weights to a folder": (["WORK/a.safetensors", "--to", "published", *OUT], "must be a file that ends with"),
    "below a file": (["WORK/a.pkl", "--out", "WORK/file/out"], "is a file, not a folder"),
    "no out": (["WORK/a.pkl"], "the following arguments are required: --out"),
    "there": (["WORK/a-0008388-0.050.pkl", "--out", "WORK/there.safetensors"], "is there already, and is not replaced"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_any_work(name: str, tmp_path: Path, monkeypatch, capsys):
    given, said = REFUSED[name]
    for file in ("file", "there.safetensors"):
        (tmp_path / file).touch()
    for folder in ("d-0008388-0.050.pkl", "d.safetensors"):
        (tmp_path / folder).mkdir()
    before = sorted(tmp_path.rglob("*"))
    arguments: list[object] = [word.replace("WORK", str(tmp_path)) for word in given]
    assert said in refused_in_process(convert, arguments, monkeypatch, capsys).replace(str(tmp_path), "WORK")
    assert sorted(tmp_path.rglob("*")) == before


CONTENTS: dict[str, tuple[Any, str]] = {
    "encoder": ({"encoder": vae_encoder()}, "holds no network, only encoder; name a file with `ema`"),
    "code": ({"ema": print}, "its pickle names builtins.print, which no snapshot of EDM2 needs; nothing of it was run"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_contents_are_refused_in_one_line(name: str, tmp_path: Path, monkeypatch, capsys):
    value, said = CONTENTS[name]
    (tmp_path / NAME).write_bytes(pickled(value))
    assert said in refused_in_process(convert, [tmp_path / NAME, "--out", tmp_path / "out"], monkeypatch, capsys)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_state_that_is_a_checkpoint_of_something_else(tmp_path: Path, monkeypatch, capsys):
    torch.save({"model": {}}, tmp_path / "a.pt")
    said = refused_in_process(convert, [tmp_path / "a.pt", "--out", tmp_path / "out"], monkeypatch, capsys)
    assert "is no training state of EDM2, which holds state, net and ema (missing: state, net, ema)" in said


@pytest.mark.slow
def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The commands of docs/weights.md, on small networks in the places of the published ones."""
    net = small_network(1)
    for name in ("edm2-img64-s-1073741-0.075.pkl", "network-snapshot-0008388-0.100.pkl"):
        write_published(tmp_path / name, net, NETWORK)
    (tmp_path / "training-state-0008388.pt").write_bytes(archived(training_table(net, {0.1: small_network(2)}, 2**23)))
    lines = [line for page, line, marked in ALL if page == "weights.md" and not marked]
    assert len(lines) == 5
    monkeypatch.chdir(tmp_path)
    for index, line in enumerate(lines):
        script, words = after_script(line)
        if index == 0:  # a process of its own takes seconds to start
            started = command_line(Path(script).name, *words)
            done = subprocess.run(started, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        else:
            monkeypatch.setattr("sys.argv", [script, *words])
            (convert if script.endswith("convert.py") else sample).main()
    plain = torch.load(tmp_path / "plain.pt", weights_only=True)
    assert torch.equal(plain["unet.out_gain"], small_network(2).unet.out_gain.reshape([]))
    assert len(list((tmp_path / "out" / "published").glob("*.png"))) == 4
