"""Training on a real Slurm cluster of two nodes, data and results in a real S3 server; disturbed jobs come back."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from helpers.commands import ROOT, TINY_RUN, TRAIN
from helpers.forks import run_forked
from helpers.object_store import ObjectStore
from helpers.runs import difference, stored_snapshots
from helpers.slurm_cluster import ENDS, NODES, SlurmCluster, wait_for
from helpers.small_snapshots import NETWORK, small_network, stored
from recipe.evaluation.features import by_import_path
from recipe.evaluation.measuring import measure
from recipe.evaluation.reference import About, save_reference
from recipe.ranks import Ranks
from recipe.storage.addresses import open_place
from recipe.storage.places import Place
from recipe.weights.checkpoints import newest_whole
from recipe.weights.snapshots import SnapshotInfo, save_snapshot, snapshot_name

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 36
SCRIPT = ROOT / "launch" / "run.sh"
SHORT = "duration=24ba"
SETTINGS = [
    *(item for item in TINY_RUN if not item.startswith(("duration", "ema", "checkpoints"))),
    "fsdp={}",
    "loss.label_dropout=0.1",
    "ema.snapshot_interval=6ba",
    "ema.snapshot_dtype=float32",
    "checkpoints.interval=8ba",
    "checkpoints.keep=2",
    "logging.tensorboard=false",
    "data.local=${oc.env:TMPDIR}/digits",  # a node's own: launch/run.sh makes it
]
EXPECTED_SECONDS = 200  # of one start, on a busy machine


@pytest.fixture(scope="module")
def remote_digits(object_store: ObjectStore, digits: Path) -> str:
    place = open_place(f"s3://{object_store.bucket}/slurm/digits")
    for path in digits.iterdir():
        place.upload(path.name, path)
    return place.address


def arguments(data: str, place: Place, duration: str = f"duration={STEPS}ba") -> list[str]:
    places = [f"data.remote={data}", f"save_folder={place.address}"]
    return [str(ROOT / "yamls" / "edm2.yaml"), *SETTINGS, duration, *places]


def output(job: str, folder: Path) -> str:
    """What a job printed, its ranks too."""
    paths = [folder / f"{job}.out", *sorted((folder / "logs" / job).glob("*"))]
    return "".join(f"--- {path.name}\n{path.read_text()[-4000:]}" for path in paths if path.exists())


def assert_like(place: Place, other: Place, exactly: bool = False) -> None:
    """All snapshots that one run stored are among the other's: to rounding, or bit for bit."""
    own, others = sorted((stored_snapshots(place), stored_snapshots(other)), key=len)
    assert len(own) >= 8 and own.keys() <= others.keys()
    if exactly:
        assert [name for name in own if own[name] != others[name]] == []
    for name in own:
        assert difference(load(own[name]), load(others[name])) < 1e-5, name


def newest_batch(place: Place) -> int:
    newest = newest_whole(place.child("checkpoints"))
    assert newest is not None
    return newest.batch


def submit(cluster: SlurmCluster, nodes: int, data: str, place: Place, folder: Path, **env: str) -> str:
    """The id of a new training job on `nodes` nodes."""
    line = [f"--nodes={nodes}", SCRIPT, *arguments(data, place)]
    return cluster.submit(*line, folder=folder, TMPDIR=str(folder), **env)


@pytest.fixture(scope="module")
def undisturbed(object_store: ObjectStore, remote_digits: str, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Two ranks without Slurm and without disturbance."""
    place = open_place(f"s3://{object_store.bucket}/slurm/undisturbed")
    env = object_store.environment | {"TMPDIR": str(tmp_path_factory.mktemp("undisturbed"))}
    done = run_forked(TRAIN, *arguments(remote_digits, place), ranks=2, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(stored_snapshots(place)) == STEPS // 6 * 2
    return place


def test_like_one_process(undisturbed: Place, object_store: ObjectStore, remote_digits: str, tmp_path: Path):
    """The same run on one rank."""
    place = open_place(f"s3://{object_store.bucket}/slurm/plain")
    done = run_forked(TRAIN, *arguments(remote_digits, place, SHORT), env={"TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert_like(undisturbed, place)


@pytest.mark.parametrize(("nodes", "ranks"), [(2, 2), (1, 2)])
@pytest.mark.soak
def test_nodes_and_ranks(
    nodes: int,
    ranks: int,
    cluster: SlurmCluster,
    undisturbed: Place,
    remote_digits: str,
    tmp_path: Path,
    object_store: ObjectStore,
):
    place = open_place(f"s3://{object_store.bucket}/slurm/{nodes}x{ranks}")
    line = [f"--nodes={nodes}", SCRIPT, *arguments(remote_digits, place, SHORT)]
    job = cluster.submit(*line, folder=tmp_path, TMPDIR=str(tmp_path), RANKS_PER_NODE=str(ranks))
    assert cluster.finish(job, EXPECTED_SECONDS) == "COMPLETED", output(job, tmp_path)
    logs = {path.name for path in (tmp_path / "logs" / job).glob("rank*.err")}
    assert logs == {f"rank{rank}.err" for rank in range(1, nodes * ranks)}
    assert_like(undisturbed, place, exactly=nodes * ranks == 2)


class Disturbed:
    """A job on two nodes that a test disturbs again and again."""

    def __init__(self, cluster: SlurmCluster, job: str, place: Place, folder: Path):
        self.cluster, self.job, self.place, self.folder = cluster, job, place, folder
        self.starts = 0

    def seen(self) -> int:
        return len(self.place.list("snapshots/"))

    def wait_for(self, condition: Callable[[], object], what: str, seconds: float = EXPECTED_SECONDS) -> None:
        try:
            wait_for(condition, what, seconds)
        except AssertionError:
            print(output(self.job, self.folder), self.cluster.job(self.job))
            raise

    @contextmanager
    def disturbance(self, signalled: bool = True) -> Iterator[None]:
        """Wait until the job trains, and hold its ranks during the disturbance, lest they reach the end before it.

        Args:
            signalled: whether the disturbance reaches the ranks as a signal.
        """
        seen = self.seen()
        self.wait_for(lambda: self.cluster.release(self.job) or self.seen() > seen, f"progress past {seen} snapshots")
        ranks = self.ranks()
        assert len(ranks) == 2, "the run was over before it could be disturbed"
        for rank in ranks:
            os.kill(rank, signal.SIGSTOP)
        yield
        for rank in ranks:
            if signalled:
                self.wait_for(lambda rank=rank: has_signal(rank), "a signal", 90)
            with suppress(ProcessLookupError):
                os.kill(rank, signal.SIGCONT)
        self.starts += 1
        self.wait_for(lambda: self.restarts() == self.starts, f"start {self.starts} after the disturbance")

    def restarts(self) -> int:
        found = self.cluster.job(self.job)
        assert found["JobState"] not in ENDS, output(self.job, self.folder)
        return int(found["Restarts"])

    def ranks(self) -> list[int]:
        """Process ids of the ranks, by rank."""
        found = {}
        for node in NODES:
            for pid in self.cluster.processes(node):
                with suppress(OSError):
                    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                    line = Path(f"/proc/{pid}/cmdline").read_bytes()
                    rank = [int(item[5:]) for item in variables if item.startswith(b"RANK=")]
                    if rank and b"train.py" in line and not line.startswith(b"sh\0"):
                        found.setdefault(rank[0], pid)
        return [found[rank] for rank in sorted(found)]


def test_comes_back(
    cluster: SlurmCluster, undisturbed: Place, object_store: ObjectStore, remote_digits: str, tmp_path: Path
):
    """A job is requeued; its end is that of `undisturbed`."""
    place = open_place(f"s3://{object_store.bucket}/slurm/requeued")
    job = Disturbed(cluster, submit(cluster, 2, remote_digits, place, tmp_path), place, tmp_path)
    with job.disturbance():
        cluster.run("scontrol", "requeue", job.job)
    assert_same_end(job, undisturbed)
    assert f"job {job.job}, start 2: 2 nodes" in (tmp_path / f"{job.job}.out").read_text()
    assert (tmp_path / "logs" / job.job / "rank1.err").is_file()
    assert [path for path in tmp_path.iterdir() if path.name.startswith("edm2-job")] == []


def assert_same_end(job: Disturbed, undisturbed: Place) -> None:
    state = job.cluster.finish(job.job, EXPECTED_SECONDS)
    assert state == "COMPLETED", output(job.job, job.folder)
    assert_like(job.place, undisturbed, exactly=True)
    assert newest_batch(job.place) == newest_batch(undisturbed) == STEPS


@pytest.mark.soak
def test_comes_back_from_each_death(
    cluster: SlurmCluster, undisturbed: Place, object_store: ObjectStore, remote_digits: str, tmp_path: Path
):
    """One job is preempted, out of time, and loses each of its nodes; its end is that of `undisturbed`."""
    place = open_place(f"s3://{object_store.bucket}/slurm/disturbed")
    job = Disturbed(cluster, submit(cluster, 2, remote_digits, place, tmp_path), place, tmp_path)
    with job.disturbance():
        urgent = cluster.submit("--nodes=2", "--exclusive", "--partition=high", "--wrap=true", folder=tmp_path)
    job.wait_for(lambda: cluster.state(urgent) == "COMPLETED", "the urgent job")
    with job.disturbance():  # less time left than the margin of the script; Slurm looks at the clock twice a minute
        cluster.run("scontrol", "update", f"jobid={job.job}", "TimeLimit=5")
    cluster.run("scontrol", "update", f"jobid={job.job}", "TimeLimit=60")
    for node in ("n2", "n1"):
        with job.disturbance(signalled=False):
            cluster.kill_node(node)
            cluster.start_node(node)
    assert_same_end(job, undisturbed)
    text = (tmp_path / f"{job.job}.out").read_text()
    assert "stopped and saved; the job is RUNNING" in text and "a node was lost; the job is RUNNING" in text


def has_signal(rank: int) -> bool:
    """Whether a signal waits for a stopped process; or it has got it and ended, as Slurm lets processes continue."""
    try:
        status = Path(f"/proc/{rank}/status").read_text()
    except OSError:
        return True
    wanted = 1 << (signal.SIGUSR1 - 1) | 1 << (signal.SIGTERM - 1)
    return "State:\tZ" in status or bool(int(status.split("ShdPnd:")[1].split()[0], 16) & wanted)


def test_samples_by_many_lengths(cluster: SlurmCluster, undisturbed: Place, tmp_path: Path):
    """launch/array_eval.sh: the lengths are dealt out to two tasks."""
    line = [ROOT / "launch" / "array_eval.sh", undisturbed.address, "0.08,0.1:0.12:0.02"]
    env = {"OUT": str(tmp_path / "out"), "TMPDIR": str(tmp_path)}
    job = cluster.submit("--array=0-1", *line, "--seeds", "0-3", "--steps", "3", folder=tmp_path, **env)
    wait_for(lambda: cluster.run("squeue", "--noheader") == "", "both tasks", EXPECTED_SECONDS)
    assert {cluster.state(f"{job}_{task}") for task in (0, 1)} == {"COMPLETED"}
    text = "".join(path.read_text() for path in tmp_path.glob("*.out"))
    for length in ("0.080", "0.100", "0.120"):
        assert (tmp_path / "out" / f"{length}.png").is_file(), text
        assert len(list((tmp_path / "out" / length).glob("*.png"))) == 4


def test_samples_on_two_nodes(cluster: SlurmCluster, tmp_path: Path):
    """launch/run.sh with recipe/sample.py: each of two nodes draws its part."""
    snapshot = tmp_path / snapshot_name(1000, 0.05)
    save_snapshot(snapshot, stored(small_network(0), torch.float32), SnapshotInfo(NETWORK, 1000, 0.05))
    options = ["--seeds", "0-31", "--steps", "2", "--device", "cpu", "--out", tmp_path / "out"]
    line = ["--nodes=2", SCRIPT, "recipe/sample.py", snapshot, *options]
    job = cluster.submit(*line, folder=tmp_path, TMPDIR=str(tmp_path), RANKS_PER_NODE="1")
    assert cluster.finish(job, EXPECTED_SECONDS) == "COMPLETED", output(job, tmp_path)
    assert f"{tmp_path / 'out'}: 32 images of seeds 0-31" in output(job, tmp_path)
    assert len(list((tmp_path / "out").glob("*.png"))) == 32
    assert [path.name for path in (tmp_path / "logs" / job).glob("rank*.err")] == ["rank1.err"]


def test_a_sweep_by_an_array(cluster: SlurmCluster, undisturbed: Place, tmp_path: Path):
    """launch/sweep.sh: two tasks share the points of a grid; the same line without Slurm makes the table."""
    name, statistics = "helpers.feature_networks:pixels", tmp_path / "ref.safetensors"
    network = by_import_path(name, torch.device("cpu"))
    noise = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = measure(network, [(range(64), noise)], Ranks())
    assert found is not None
    save_reference(statistics, About(name, network.digest, 8), found)
    line = [ROOT / "launch" / "sweep.sh", undisturbed.address, "--ref", statistics, "--sigma-rel", "0.08:0.12:0.02"]
    options = ["--features", name, "--num", "16", "--steps", "2", "--out", tmp_path / "out"]
    env = {"TMPDIR": str(tmp_path), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    job = cluster.submit("--array=0-1", *line, *options, folder=tmp_path, **env)
    wait_for(lambda: cluster.run("squeue", "--noheader") == "", "both tasks", EXPECTED_SECONDS)
    text = "".join(path.read_text() for path in tmp_path.glob("*.out"))
    assert {cluster.state(f"{job}_{task}") for task in (0, 1)} == {"COMPLETED"}, text
    points = sorted((tmp_path / "out" / "points").iterdir())
    assert len(points) == 3 and not (tmp_path / "out" / "table.csv").exists(), text
    before = [path.stat().st_mtime_ns for path in points]
    done = run_forked("sweep.py", *line[1:], *options, env=env)
    assert done.returncode == 0 and "<- best" in done.stdout, done.stdout + done.stderr
    assert [path.stat().st_mtime_ns for path in points] == before
