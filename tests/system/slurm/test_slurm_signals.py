"""What launch/run.sh does with statuses and signals, on a real Slurm cluster, with a stand-in that trains nothing.

So each case takes seconds. The stand-in takes composer's arguments and environment, writes them down, and then acts.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest

from helpers.commands import ROOT
from helpers.slurm_cluster import SlurmCluster, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

SCRIPT = ROOT / "launch" / "run.sh"
CONFIG = str(ROOT / "yamls" / "edm2.yaml")
SECONDS = 100

STAND_IN = """#!{python}
import json, os, pathlib, signal, sys, time
out, node = pathlib.Path(os.environ["RECORD"]), os.environ["SLURM_NODEID"]
start = os.environ.get("SLURM_RESTART_COUNT", "0")
print(f"node {{node}} speaks", flush=True)
record = {{"arguments": sys.argv[1:], "environment": dict(os.environ)}}
(out / f"{{start}}-{{node}}.json").write_text(json.dumps(record))
{action}
"""
# Ranks install their handlers late, after seconds of imports: a signal that comes before is lost on them.
SAVE_WHEN_TOLD = """
if start == "0":
    time.sleep(2)
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
    time.sleep(100)
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A folder to submit in, with bin/composer yet to be written, and the real Python beside it."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    return tmp_path


def write_stand_in(folder: Path, action: str) -> dict[str, str]:
    """Make bin/composer; returns the variables with which launch/run.sh takes it."""
    program = folder / "bin" / "composer"
    program.write_text(STAND_IN.format(python=sys.executable, action=action))
    program.chmod(0o755)
    return {"VENV": str(folder), "RECORD": str(folder), "TMPDIR": str(folder)}


def submit(cluster: SlurmCluster, folder: Path, action: str, *options: str, **env: str) -> str:
    """The id of a new job on both nodes."""
    line = ("--nodes=2", *options, SCRIPT, CONFIG)
    return cluster.submit(*line, folder=folder, **write_stand_in(folder, action) | env)


def wait_for_start(folder: Path) -> None:
    wait_for(lambda: len(list(folder.glob("0-*.json"))) == 2, "both nodes", SECONDS)


def output(folder: Path, job: str) -> str:
    return (folder / f"{job}.out").read_text()


def test_launchers_arguments(cluster: SlurmCluster, stand_in: Path):
    job = submit(cluster, stand_in, "pass", "--exclusive", "--cpus-per-task=2", RANKS_PER_NODE="4")
    assert cluster.finish(job, SECONDS) == "COMPLETED", output(stand_in, job)
    port, logs = str(12000 + int(job) % 20000), stand_in / "logs" / job
    folders = set()
    for node in (0, 1):
        found = json.loads((stand_in / f"0-{node}.json").read_text())
        assert found["arguments"] == [
            *("-n", "4", "--world_size", "8", "--node_rank", str(node), "--master_addr", "n1", "--master_port", port),
            *("--stdout", f"{logs}/rank{{rank}}.out", "--stderr", f"{logs}/rank{{rank}}.err"),
            *(str(ROOT / "recipe" / "train.py"), CONFIG),
        ]
        assert found["environment"]["SLURM_JOB_ID"] == job  # by which a run's folder knows its owner
        folders.add(found["environment"]["TMPDIR"])
    assert len(folders) == 2 and not any(Path(folder).exists() for folder in folders)
    assert "node 0 speaks" in output(stand_in, job) and "node 1 speaks" not in output(stand_in, job)
    assert (logs / "rank4.out").read_text() == "node 1 speaks\n"


def test_failure_is_told_and_not_repeated(cluster: SlurmCluster, stand_in: Path):
    job = submit(cluster, stand_in, "print('out of', 'cheese', file=sys.stderr); sys.exit(7)")
    assert cluster.finish(job, SECONDS) == "FAILED"
    assert (cluster.job(job)["ExitCode"], cluster.job(job)["Restarts"]) == ("7:0", "0")
    text = output(stand_in, job)
    assert "failed with status 7" in text
    assert text.split("node 1 ended with status 7")[1].count("out of cheese") >= 1  # what only its file would show


def test_node_that_came_up_anew_is_a_lost_node(cluster: SlurmCluster, stand_in: Path):
    """The first start fails after the daemon of its second node was started again; it is not to blame."""
    job = submit(cluster, stand_in, "if start == '0':\n    time.sleep(8)\n    sys.exit(7)")
    wait_for_start(stand_in)
    cluster.restart_daemon("n2")
    assert cluster.finish(job, SECONDS) == "COMPLETED", output(stand_in, job)
    assert cluster.job(job)["Restarts"] == "1"
    assert "a node was lost; the job is RUNNING" in output(stand_in, job)


def test_failure_is_repeated_if_wanted(cluster: SlurmCluster, stand_in: Path):
    job = submit(cluster, stand_in, "sys.exit(7)", RESTARTS="1")
    assert cluster.finish(job, SECONDS) == "FAILED"
    assert cluster.job(job)["Restarts"] == "1"


def test_mistake_on_one_node_is_the_jobs(cluster: SlurmCluster, stand_in: Path):
    """The other node's ranks lose their peers and end with a status of their own."""
    job = submit(cluster, stand_in, "time.sleep(int(node)); sys.exit(2 if node == '0' else 9)", RESTARTS="5")
    assert cluster.finish(job, SECONDS) == "FAILED"
    assert (cluster.job(job)["ExitCode"], cluster.job(job)["Restarts"]) == ("2:0", "0")


@pytest.mark.parametrize("whom", ["tasks", "batch script"])
def test_told_to_stop_saves_and_comes_back(whom: str, cluster: SlurmCluster, stand_in: Path):
    job = submit(cluster, stand_in, SAVE_WHEN_TOLD)
    wait_for_start(stand_in)
    cluster.run("scancel", "--signal=USR1", *(["--batch"] if whom == "batch script" else []), job)
    assert cluster.finish(job, SECONDS) == "COMPLETED", output(stand_in, job)
    assert cluster.job(job)["Restarts"] == "1"
    assert "stopped and saved; the job is RUNNING" in output(stand_in, job)


def test_cancelled_job_stays_cancelled(cluster: SlurmCluster, stand_in: Path):
    """It saves too, but must not creep back into the queue."""
    job = submit(cluster, stand_in, SAVE_WHEN_TOLD)
    wait_for_start(stand_in)
    cluster.run("scancel", job)
    assert cluster.finish(job, SECONDS) == "CANCELLED"
    wait_for(lambda: "stopped and saved; the job is" in output(stand_in, job), "the end of the script", SECONDS)
    assert "the job is RUNNING" not in output(stand_in, job)
    wait_for(lambda: cluster.run("squeue", "--noheader") == "", "an empty queue", SECONDS)
    assert cluster.state(job) == "CANCELLED"


def test_folders_of_dead_jobs_go_and_of_live_ones_stay(cluster: SlurmCluster, stand_in: Path):
    live = cluster.submit("--wrap=sleep 100", "--nodelist=n1", folder=stand_in)
    wait_for(lambda: cluster.state(live) == "RUNNING", "a job beside", SECONDS)
    for owner in (live, "999999"):
        (stand_in / f"edm2-job-{owner}-0-n1" / "cache").mkdir(parents=True)
    job = submit(cluster, stand_in, "pass")
    assert cluster.finish(job, SECONDS) == "COMPLETED", output(stand_in, job)
    cluster.run("scancel", live)
    assert [path.name for path in stand_in.glob("edm2-job-*")] == [f"edm2-job-{live}-0-n1"]


def test_ranks_do_not_outlive_their_launcher(cluster: SlurmCluster, stand_in: Path):
    action = "os.fork() and (time.sleep(1), os.kill(os.getpid(), 9)); time.sleep(60); (out / 'outlived').touch()"
    job = submit(cluster, stand_in, action)
    assert cluster.finish(job, 40) == "FAILED"
    assert not any(b"bin/composer" in line for line in command_lines(cluster))


def command_lines(cluster: SlurmCluster) -> list[bytes]:
    pids = [pid for node in ("n1", "n2") for pid in cluster.processes(node)]
    paths = [Path(f"/proc/{pid}/cmdline") for pid in pids]
    return [path.read_bytes() for path in paths if path.exists()]


@pytest.mark.parametrize(
    ("options", "settings", "message"),
    [
        ("--nodes=2", "nowhere.yaml", "nowhere.yaml: no such file"),
        ("--nodes=2", "duration=192ba", "global_batch_size = 64: must be a multiple of the number of ranks, 6"),
        ("--nodes=2 --ntasks-per-node=2", "seed=1", "SLURM_TASKS_PER_NODE = 2(x2): must be 1 on every node"),
        ("--nodes=1", "", "usage: recipe/config.py"),
    ],
)
def test_refused_before_anything_starts(
    options: str, settings: str, message: str, cluster: SlurmCluster, stand_in: Path
):
    line = [SCRIPT, CONFIG, settings] if settings else [SCRIPT]
    env = write_stand_in(stand_in, "pass") | {"RANKS_PER_NODE": "3"}
    job = cluster.submit(*options.split(), *line, folder=stand_in, **env)
    assert cluster.finish(job, SECONDS) == "FAILED"
    assert cluster.job(job)["ExitCode"] == "2:0"
    assert message in output(stand_in, job)
    assert not list(stand_in.glob("*.json"))


def test_repository(cluster: SlurmCluster, stand_in: Path):
    """Slurm runs a copy of the script: the repository is where the script was, or where sbatch was called."""
    copy = stand_in / "copy.sh"
    shutil.copy(SCRIPT, copy)
    job = cluster.submit(copy, CONFIG, folder=stand_in)
    assert cluster.finish(job, SECONDS) == "FAILED"
    assert cluster.job(job)["ExitCode"] == "2:0"
    assert f"{stand_in}: holds no recipe/train.py" in output(stand_in, job)
    env = write_stand_in(stand_in, "pass") | {"LOG_FOLDER": str(stand_in)}
    job = cluster.submit(f"--output={stand_in}/%j.out", copy, CONFIG, folder=ROOT, **env)
    assert cluster.finish(job, SECONDS) == "COMPLETED", output(stand_in, job)
