"""Training on a real Slurm cluster of two nodes, data and results in a real S3 server; jobs are disturbed and come back."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import ROOT, TINY_RUN, run
from object_store import ObjectStore
from recipe.storage.checkpoints import newest_whole
from recipe.storage.places import Place, open_place
from runs import difference
from safetensors.torch import load
from slurm_cluster import NODES, SlurmCluster, reason_to_skip, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

STEPS = 240
SCRIPT = ROOT / "launch" / "run.sh"
SETTINGS = [
    *(item for item in TINY_RUN if not item.startswith(("duration", "ema", "checkpoints"))),
    f"duration={STEPS}ba",
    "fsdp={}",
    "loss.label_dropout=0.1",
    "ema.snapshot_interval=6ba",
    "ema.snapshot_dtype=float32",
    "checkpoints.interval=8ba",
    "checkpoints.keep=2",
    "logging.tensorboard=false",
    "data.local=${oc.env:TMPDIR}/digits",  # a node's own: launch/run.sh makes it
]
EXPECTED_SECONDS = 120  # of one start, on a busy machine


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    reason = reason_to_skip()
    if reason is not None:
        pytest.skip(reason)
    cluster = SlurmCluster()
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def remote_digits(object_store: ObjectStore, digits: Path) -> str:
    place = open_place(f"s3://{object_store.bucket}/slurm/digits")
    for path in digits.iterdir():
        place.upload(path.name, path)
    return place.address


def arguments(data: str, place: Place) -> list[str]:
    return [str(ROOT / "yamls" / "edm2.yaml"), *SETTINGS, f"data.remote={data}", f"save_folder={place.address}"]


def output(job: str, folder: Path) -> str:
    """What a job printed, its ranks too."""
    paths = [folder / f"{job}.out", *sorted((folder / "logs" / job).glob("*"))]
    return "".join(f"--- {path.name}\n{path.read_text()[-4000:]}" for path in paths if path.exists())


def snapshot_files(place: Place) -> dict[str, bytes]:
    return {entry.name: place.read(entry.name) for entry in place.list("snapshots/")}


def assert_like(place: Place, other: Place) -> None:
    """The same snapshots to rounding."""
    own, others = snapshot_files(place), snapshot_files(other)
    assert own.keys() == others.keys() and len(own) == STEPS // 6 * 2
    for name in own:
        assert difference(load(own[name]), load(others[name])) < 1e-5, name


def assert_same_end(place: Place, other: Place) -> None:
    """Bit for bit: every snapshot of every time; and the same last checkpoint."""
    own, others = snapshot_files(place), snapshot_files(other)
    assert own.keys() == others.keys() and len(own) == STEPS // 6 * 2
    assert [name for name in own if own[name] != others[name]] == []
    ends = [newest_whole(there.child("checkpoints")) for there in (place, other)]
    assert ends[0] is not None and ends[1] is not None
    assert (ends[0].batch, ends[0].name) == (ends[1].batch, ends[1].name)


@pytest.fixture(scope="module")
def undisturbed(
    cluster: SlurmCluster, object_store: ObjectStore, remote_digits: str, tmp_path_factory: pytest.TempPathFactory
) -> Place:
    """2 nodes x 1 rank, without disturbance."""
    folder = tmp_path_factory.mktemp("undisturbed")
    place = open_place(f"s3://{object_store.bucket}/slurm/undisturbed")
    job = cluster.submit("--nodes=2", SCRIPT, *arguments(remote_digits, place), folder=folder, TMPDIR=str(folder))
    assert cluster.finish(job, EXPECTED_SECONDS) == "COMPLETED", output(job, folder)
    assert cluster.job(job)["Restarts"] == "0"
    ranks = {json.loads(line) for line in ()}
    assert ranks == set()
    return place


def test_like_one_process(undisturbed: Place, object_store: ObjectStore, remote_digits: str, tmp_path: Path):
    """The same script without Slurm, on one rank."""
    place = open_place(f"s3://{object_store.bucket}/slurm/plain")
    env = {"TMPDIR": str(tmp_path), "LOG_FOLDER": str(tmp_path / "logs")}
    done = run([str(SCRIPT), *arguments(remote_digits, place)], timeout=EXPECTED_SECONDS, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_like(undisturbed, place)
