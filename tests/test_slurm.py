"""Training on a real Slurm cluster of two nodes, data and results in a real S3 server; jobs are disturbed and come back."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from safetensors.torch import load

from commands import ROOT, TINY_RUN, run
from object_store import ObjectStore
from recipe.storage.checkpoints import newest_whole
from recipe.storage.places import Place, open_place
from runs import difference
from slurm_cluster import ENDS, NODES, SlurmCluster, reason_to_skip, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

STEPS = 240
SCRIPT = ROOT / "launch" / "run.sh"
SHORT = "duration=48ba"
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


def arguments(data: str, place: Place, duration: str = f"duration={STEPS}ba") -> list[str]:
    places = [f"data.remote={data}", f"save_folder={place.address}"]
    return [str(ROOT / "yamls" / "edm2.yaml"), *SETTINGS, duration, *places]


def output(job: str, folder: Path) -> str:
    """What a job printed, its ranks too."""
    paths = [folder / f"{job}.out", *sorted((folder / "logs" / job).glob("*"))]
    return "".join(f"--- {path.name}\n{path.read_text()[-4000:]}" for path in paths if path.exists())


def snapshot_files(place: Place) -> dict[str, bytes]:
    return {entry.name: place.read(entry.name) for entry in place.list("snapshots/")}


def assert_like(place: Place, other: Place, exactly: bool = False) -> None:
    """All snapshots that one run stored are among the other's: to rounding, or bit for bit."""
    own, others = sorted((snapshot_files(place), snapshot_files(other)), key=len)
    assert len(own) >= 16 and own.keys() <= others.keys()
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
def undisturbed(
    cluster: SlurmCluster, object_store: ObjectStore, remote_digits: str, tmp_path_factory: pytest.TempPathFactory
) -> Place:
    """2 nodes x 1 rank, without disturbance."""
    folder = tmp_path_factory.mktemp("undisturbed")
    place = open_place(f"s3://{object_store.bucket}/slurm/undisturbed")
    job = submit(cluster, 2, remote_digits, place, folder)
    assert cluster.finish(job, EXPECTED_SECONDS) == "COMPLETED", output(job, folder)
    assert cluster.job(job)["Restarts"] == "0"
    assert len(snapshot_files(place)) == STEPS // 6 * 2
    assert (folder / "logs" / job / "rank1.err").is_file()
    assert [path for path in folder.iterdir() if path.name.startswith("edm2-job")] == []
    return place


def test_like_one_process(undisturbed: Place, object_store: ObjectStore, remote_digits: str, tmp_path: Path):
    """The same script without Slurm, on one rank."""
    place = open_place(f"s3://{object_store.bucket}/slurm/plain")
    env = {"TMPDIR": str(tmp_path), "LOG_FOLDER": str(tmp_path / "logs")}
    done = run([str(SCRIPT), *arguments(remote_digits, place, SHORT)], timeout=EXPECTED_SECONDS, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_like(undisturbed, place)


@pytest.mark.parametrize(("nodes", "ranks"), [(2, 2), (1, 2)])
def test_nodes_and_ranks(
    nodes: int, ranks: int, cluster: SlurmCluster, undisturbed: Place, remote_digits: str, tmp_path: Path,
    object_store: ObjectStore,
):  # fmt: skip
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
    def progress(self) -> Iterator[None]:
        """Wait until the job trains again; the disturbance; then wait until Slurm has it back in the queue."""
        seen = self.seen()
        self.wait_for(lambda: self.cluster.release(self.job) or self.seen() > seen, f"progress past {seen} snapshots")
        assert self.seen() < STEPS // 6 * 2, "the run was over before it could be disturbed"
        yield
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
    """One job is requeued, preempted, out of time, and loses each of its nodes; its end is that of `undisturbed`."""
    place = open_place(f"s3://{object_store.bucket}/slurm/disturbed")
    job = Disturbed(cluster, submit(cluster, 2, remote_digits, place, tmp_path), place, tmp_path)
    with job.progress():
        cluster.run("scontrol", "requeue", job.job)
    with job.progress():
        urgent = cluster.submit("--nodes=2", "--exclusive", "--partition=high", "--wrap=true", folder=tmp_path)
        job.wait_for(lambda: cluster.state(urgent) == "COMPLETED", "the urgent job")
    with job.progress():
        run_out_of_time(job)
    for node in ("n2", "n1"):
        with job.progress():
            cluster.kill_node(node)
            cluster.start_node(node)
    assert cluster.finish(job.job, EXPECTED_SECONDS) == "COMPLETED", output(job.job, tmp_path)
    assert_like(place, undisturbed, exactly=True)
    assert newest_batch(place) == newest_batch(undisturbed) == STEPS
    text = (tmp_path / f"{job.job}.out").read_text()
    assert "stopped and saved; the job is RUNNING" in text and "a node was lost; the job is RUNNING" in text


def run_out_of_time(job: Disturbed) -> None:
    """Have Slurm send the signal of --signal; it looks at the clock twice a minute, and the run must not end before."""
    ranks = job.ranks()
    assert len(ranks) == 2
    for rank in ranks:
        os.kill(rank, signal.SIGSTOP)
    job.cluster.run("scontrol", "update", f"jobid={job.job}", "TimeLimit=5")
    pending = 1 << (signal.SIGUSR1 - 1)
    for rank in ranks:
        job.wait_for(lambda rank=rank: signals(rank) & pending, "the signal before the time limit", 90)
    job.cluster.run("scontrol", "update", f"jobid={job.job}", "TimeLimit=60")
    for rank in ranks:
        os.kill(rank, signal.SIGCONT)


def signals(process: int) -> int:
    """Signals that wait for a process, as a bit field."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("ShdPnd:")[1].split()[0], 16)
