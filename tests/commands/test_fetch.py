"""Fetching a run, and reading its snapshots where they are, from a real S3 server."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from helpers.commands import ROOT, assert_refused, command_line, run
from helpers.fault_proxy import FaultProxy
from helpers.forks import run_forked
from helpers.object_store import ObjectStore, environment
from helpers.small_snapshots import NETWORK
from recipe.edm2.networks.precond import Precond
from recipe.storage.addresses import open_place
from recipe.storage.places import Place
from recipe.weights.snapshots import (
    SnapshotError,
    SnapshotInfo,
    SnapshotReader,
    list_snapshots,
    save_snapshot,
    snapshot_name,
)

TIMES = [1000 * step for step in range(1, 9)]


@pytest.fixture(scope="module")
def stored(object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, Path]:
    """A run's snapshots and configuration, in the store and as local files."""
    folder = tmp_path_factory.mktemp("run")
    place = open_place(f"s3://{object_store.bucket}/fetched")
    torch.manual_seed(0)
    net = Precond(**NETWORK)
    for time_ in TIMES:
        for sigma_rel in (0.05, 0.1):
            state = {name: tensor + torch.randn_like(tensor) / 10 for name, tensor in net.state_dict().items()}
            buffers = dict(net.named_buffers())
            tensors = {key: buffers[key] if key in buffers else value.half() for key, value in state.items()}
            name = f"snapshots/{snapshot_name(time_, sigma_rel)}"
            save_snapshot(folder / name, tensors, SnapshotInfo(NETWORK, time_, sigma_rel))
            place.upload(name, folder / name)
    (folder / "config.yaml").write_text("run_name: fetched\n")
    place.upload("config.yaml", folder / "config.yaml")
    return place, folder


def fetch(place: Place, *arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return run_forked("fetch.py", place.address, *arguments, env=env)


def test_everything(stored: tuple[Place, Path], tmp_path: Path):
    place, folder = stored
    done = fetch(place, "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "17 files" in done.stdout
    for path in folder.rglob("*.*"):
        assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes()
    assert not [path for path in tmp_path.rglob("*") if ".part" in path.name]


def test_a_choice(stored: tuple[Place, Path], tmp_path: Path):
    place, _ = stored
    done = fetch(place, "--what", "snapshots", "--sigma-rel", "0.1", "--nimg", "latest", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == [snapshot_name(8000, 0.1)]


def test_list(stored: tuple[Place, Path]):
    place, _ = stored
    lines = fetch(place, "--list").stdout.splitlines()
    assert lines[0].split() == ["kind", "nimg", "sigma_rel", "MB", "modified", "name"]
    assert len(lines) == 1 + 17
    assert re.search(
        r"snapshot +3000 +0\.050 +0\.\d +20\d\d-.* snapshots/snapshot-00000003000-0\.050", "\n".join(lines)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--what", "checkpoint", "--out", "OUT"], "holds no whole checkpoint"),
        (["--nimg", "77", "--out", "OUT"], "holds no such all"),
        (["--nimg", "3ba", "--out", "OUT"], "must be in images"),
        ([], "--out is missing"),
    ],
)
def test_refuses(arguments: list[str], message: str, stored: tuple[Place, Path], tmp_path: Path):
    out = str(tmp_path / "out")
    assert_refused(fetch(stored[0], *(out if word == "OUT" else word for word in arguments)), message)
    assert not Path(out).exists()


def test_refuses_a_run_that_is_not_there(object_store: ObjectStore):
    missing = open_place(f"s3://{object_store.bucket}/nothing-here")
    assert_refused(fetch(missing, "--list"), missing.address, object_store.endpoint, "there is no run")


def test_wrong_key_and_missing_bucket(stored: tuple[Place, Path], object_store: ObjectStore):
    wrong = environment(object_store.endpoint, "admin", "wrong-word")
    assert_refused(fetch(stored[0], "--list", env=wrong), "secret key does not belong")
    assert "wrong-word" not in fetch(stored[0], "--list", env=wrong).stderr
    assert_refused(fetch(open_place("s3://no-such-bucket/run"), "--list"), "no such bucket")


def test_damage_is_noticed(stored: tuple[Place, Path], object_store: ObjectStore, tmp_path: Path):
    name = f"snapshots/{snapshot_name(1000, 0.05)}"
    data = bytearray(stored[0].read(name))
    data[-1] ^= 1
    damaged = open_place(f"s3://{object_store.bucket}/damaged")
    damaged.write(name, bytes(data))  # without the checksum that an upload leaves
    assert_refused(fetch(damaged, "--out", tmp_path), name, "checksum does not match")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_goes_on_after_a_kill(object_store: ObjectStore, tmp_path: Path):
    """Killed in the middle of a large file, it asks only for the rest."""
    place = open_place(f"s3://{object_store.bucket}/large")
    source = tmp_path / "source"
    source.write_bytes(os.urandom(96 * 2**20))
    place.upload("samples/large.bin", source)
    part = tmp_path / "out" / "samples" / "large.bin.part"
    process = subprocess.Popen(command_line("fetch.py", place.address, "--out", tmp_path / "out"), cwd=ROOT)
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 0):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    have = part.stat().st_size
    assert 0 < have < 96 * 2**20
    proxy = FaultProxy(object_store.endpoint, share=0)
    env = environment(proxy.endpoint)
    done = fetch(place, "--out", tmp_path / "out", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "samples" / "large.bin").read_bytes() == source.read_bytes()
    assert proxy.sent < 96 * 2**20 - have + 2**20
    proxy.close()


def test_faults(stored: tuple[Place, Path], object_store: ObjectStore, tmp_path: Path):
    """A third of the requests fail; what comes in the end, and what is reconstructed, is the same."""
    place, folder = stored
    proxy = FaultProxy(object_store.endpoint, share=0.33, seed=5)
    env = environment(proxy.endpoint)
    done = fetch(place, "--out", tmp_path, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    for path in folder.rglob("*.*"):
        assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes()
    made = [tmp_path / "local", tmp_path / "remote"]
    for source, out in zip((str(folder), place.address), made, strict=True):
        done = run_forked("reconstruct.py", source, "--sigma-rel", "0.08,0.12", "--out", out, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
    for path in made[0].iterdir():
        assert path.read_bytes() == (made[1] / path.name).read_bytes()
    assert all(proxy.counts[fault] > 0 for fault in ("unavailable", "reset", "slow", "cut_answer", "lost_answer")), (
        proxy.counts
    )
    proxy.close()


def test_no_network_for_good(stored: tuple[Place, Path], object_store: ObjectStore, tmp_path: Path):
    proxy = FaultProxy(object_store.endpoint)
    proxy.refuse_all()
    env = environment(proxy.endpoint) | {"AWS_MAX_ATTEMPTS": "3"}
    assert_refused(fetch(stored[0], "--out", tmp_path, env=env), proxy.endpoint, stored[0].address)
    snapshot = f"{stored[0].address}/snapshots/{snapshot_name(1000, 0.05)}"
    refused = run_forked("sample.py", snapshot, "--out", tmp_path, env=env)
    assert_refused(refused, proxy.endpoint, snapshot_name(1000, 0.05))
    proxy.close()


def test_commands_take_addresses(stored: tuple[Place, Path], tmp_path: Path):
    """From s3:// to s3:// and to pictures, without fetching a file whole."""
    place, _ = stored
    done = run(command_line("reconstruct.py", place.address, "--sigma-rel", "0.1"))
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = list_snapshots(f"{place.address}/posthoc", "posthoc")
    with SnapshotReader(made.path) as reader:
        assert reader.info.sigma_rel == 0.1
    done = run(command_line("sample.py", made.path, "--seeds", "0-3", "--steps", "2", "--out", tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.glob("*.png"))) == 4


MEASURED = """
import resource, sys
import recipe.reconstruct, recipe.storage.s3
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
sys.argv = ["reconstruct.py", *sys.argv[1:]]
recipe.reconstruct.main()
print("peak", peak() - before)
"""


@pytest.mark.slow
def test_peak_memory_of_a_reconstruction(object_store: ObjectStore, tmp_path: Path):
    """At most (k + 1) float32 copies of the network and 200 MB, for k outputs, from 16 snapshots of half that size."""
    network = NETWORK | {"img_resolution": 16, "model_channels": 96, "channel_mult": [1, 2, 3], "channels_per_head": 32}
    with torch.device("meta"):
        net = Precond(**network)
    size = 4 * sum(parameter.numel() for parameter in net.parameters())
    assert size > 40e6
    place = open_place(f"s3://{object_store.bucket}/many")
    buffers = {name for name, _ in net.named_buffers()}
    for step in range(8):
        for sigma_rel in (0.05, 0.1):
            tensors = {
                name: torch.full(tensor.shape, step / 8, dtype=torch.float32 if name in buffers else torch.half)
                for name, tensor in net.state_dict().items()
            }
            name = snapshot_name(1000 * (step + 1), sigma_rel)
            save_snapshot(tmp_path / name, tensors, SnapshotInfo(network, 1000 * (step + 1), sigma_rel))
            place.upload(f"snapshots/{name}", tmp_path / name)
            (tmp_path / name).unlink()
    command = [sys.executable, "-c", MEASURED, place.address, "--sigma-rel", "0.08,0.12,0.15", "--dtype", "float32"]
    done = run([*command, "--out", str(tmp_path)])
    assert done.returncode == 0, done.stdout + done.stderr
    peak = int(done.stdout.split()[-1])
    print(f"network {size / 1e6:.0f} MB in float32, peak {peak / 1e6:.0f} MB for 3 outputs")
    assert peak < (3 + 1) * size + 200e6


@pytest.mark.parametrize(
    "header",
    [
        '{"__metadata__": {"edm2-recipe snapshot": 5}}',
        '{"__metadata__": []}',
        "[" * 100_000,
        "5",
        '{"x": {"dtype": "F32"}}',
    ],
    ids=["number", "list", "nested", "no table", "no shape"],
)
def test_hostile_headers(header: str, bucket_folder: str):
    name = snapshot_name(1000, 0.05)
    open_place(bucket_folder).write(name, len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(SnapshotError, match="is damaged or no snapshot"), SnapshotReader(f"{bucket_folder}/{name}"):
        pass
