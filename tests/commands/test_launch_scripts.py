"""What launch/run.sh, array_eval.sh and sweep.sh hand to the programs that they start, and what they refuse.

Those programs, apptainer and Slurm's own among them, are stand-ins on PATH that write down their arguments: neither
Apptainer nor Pyxis is installed here. The real Slurm is in test_slurm.py and test_slurm_signals.py.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.commands import ROOT, assert_refused, run

RUN, EVAL, SWEEP = (str(ROOT / "launch" / name) for name in ("run.sh", "array_eval.sh", "sweep.sh"))
TRAIN = str(ROOT / "recipe" / "train.py")
CONFIG = str(ROOT / "yamls" / "edm2.yaml")

WRITE_DOWN = """#!{python}
import json, pathlib, sys
with open("{record}", "a") as file:
    file.write(json.dumps([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]) + "\\n")
"""
IN_A_JOB = {
    "SLURM_JOB_ID": "41017",
    "SLURM_JOB_NUM_NODES": "3",
    "SLURM_JOB_NODELIST": "gpu[07-09]",
    "SLURM_TASKS_PER_NODE": "1(x3)",
    "SLURM_GPUS_ON_NODE": "8",
}


class StandIns:
    """Programs in a folder, found first on PATH."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.record = folder / "record"
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.write("python", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        self.write("nvidia-smi", "#!/bin/sh\nexit 9\n")  # the GPUs of this machine do not count
        self.environment = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "VENV": str(folder),
            "LOG_FOLDER": str(folder / "logs"),
            "TMPDIR": str(folder),
        }

    def write(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def writing_down(self, *names: str) -> None:
        for name in names:
            self.write(name, WRITE_DOWN.format(python=sys.executable, record=self.record))

    def slurm(self) -> None:
        self.writing_down("srun")
        self.write(
            "scontrol", '#!/bin/sh\n[ "$1 $2" = "show hostnames" ] && printf "gpu07\\ngpu08\\ngpu09\\n" || true\n'
        )

    def run(self, *line: str, **env: str) -> subprocess.CompletedProcess[str]:
        return run(line, env=self.environment | env, timeout=60)

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self.record.read_text().splitlines()]


@pytest.fixture
def programs(tmp_path: Path) -> StandIns:
    return StandIns(tmp_path)


def test_one_machine(programs: StandIns):
    """Arguments arrive as they were given, whatever they hold; the launcher finds a port itself."""
    programs.writing_down("composer")
    given = [CONFIG, f"data.local={programs.folder}/it's here; $(date) *"]
    done = programs.run(RUN, *given, RANKS_PER_NODE="2")
    assert done.returncode == 0, done.stdout + done.stderr
    ((name, *found),) = programs.calls()
    assert [name, *found[:2]] == ["composer", "-n", "2"] and found[-3:] == [TRAIN, *given]
    assert "--world_size" not in found and "--master_port" not in found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_reach_the_ranks(number: int, programs: StandIns):
    """The launcher's stand-in is its own rank: it listens only after a while, and saves when it is told to."""
    start = f"import signal, sys, time\nopen({str(programs.record)!r}, 'w').close()\ntime.sleep(1)"
    listen = "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))\ntime.sleep(60)"
    programs.write("composer", f"#!{sys.executable}\n{start}\n{listen}\n")
    process = subprocess.Popen([RUN, CONFIG], cwd=ROOT, env=os.environ | programs.environment)
    try:
        while not programs.record.exists():
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(timeout=60) == 75
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("gpus", [0, 3])
def test_ranks_are_the_gpus(gpus: int, programs: StandIns):
    programs.writing_down("composer")
    lines = "".join(f'echo "GPU {index}: NVIDIA (UUID)"\n' for index in range(gpus))
    programs.write("nvidia-smi", f"#!/bin/sh\n{lines}")
    done = programs.run(RUN, CONFIG, "global_batch_size=48", "duration=48ba", "logging.interval=1ba", *INTERVALS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert programs.calls()[0][:3] == ["composer", "-n", str(max(gpus, 1))]


INTERVALS = ["ema.snapshot_interval=8ba", "checkpoints.interval=8ba", "samples.interval=null"]


def test_ranks_follow_slurms_gpus(programs: StandIns):
    programs.slurm()
    programs.writing_down("composer")
    done = programs.run(
        RUN, CONFIG, "global_batch_size=96", "duration=8ba", "logging.interval=1ba", *INTERVALS, **IN_A_JOB
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 nodes x 8 ranks, meeting at gpu07:13017" in done.stderr
    ((name, *found),) = programs.calls()
    assert [name, *found[:3]] == ["srun", "--nodes=3", "--ntasks=3", "--ntasks-per-node=1"]
    assert found[found.index("bash") + 1 :][:4] == [RUN, "--on-node", "recipe/train.py", CONFIG]


SAMPLE = ["recipe/sample.py", "s.safetensors", "--out", "it's here; $(date) *"]


def test_another_command(programs: StandIns):
    """No configuration is looked for; the options are the command's own."""
    programs.writing_down("composer")
    for word in ("recipe/sample.py", str(ROOT / "recipe" / "sample.py")):
        assert programs.run(RUN, word, *SAMPLE[1:], RANKS_PER_NODE="2").returncode == 0
    for name, *found in programs.calls():
        assert [name, *found[:2]] == ["composer", "-n", "2"]
        assert found[-4:] == [str(ROOT / "recipe" / "sample.py"), *SAMPLE[1:]]


def test_another_command_in_a_job(programs: StandIns):
    programs.slurm()
    programs.writing_down("composer")
    done = programs.run(RUN, *SAMPLE, **IN_A_JOB)
    assert done.returncode == 0, done.stdout + done.stderr
    ((_, *found),) = programs.calls()
    node = found[found.index("bash") + 1 :]
    assert node == [RUN, "--on-node", *SAMPLE]
    programs.record.unlink()
    here = {"SLURM_NODEID": "0", "MASTER_ADDR": "gpu07", "MASTER_PORT": "13017", "RANKS_PER_NODE": "8"}
    (programs.folder / "logs" / "41017").mkdir(parents=True, exist_ok=True)
    done = programs.run(*node, **IN_A_JOB, **here)  # what srun would have started there
    assert done.returncode == 0, done.stdout + done.stderr
    ((name, *found),) = programs.calls()
    assert [name, *found[:4]] == ["composer", "-n", "8", "--world_size", "24"]
    assert found[-4:] == [str(ROOT / "recipe" / "sample.py"), *SAMPLE[1:]]


@pytest.mark.parametrize(("line", "status"), [([CONFIG], 3), (SAMPLE, 75)], ids=["train", "sample"])
def test_what_a_stopped_command_ends_with(line: list[str], status: int, programs: StandIns):
    """Of sample.py, which has nothing to save, any end counts as one to go on from; train.py's own status counts."""
    start = f"import signal, sys, time\nopen({str(programs.record)!r}, 'w').close()\n"
    programs.write(
        "composer",
        f"#!{sys.executable}\n{start}signal.signal(signal.SIGUSR1, lambda *_: sys.exit(3))\ntime.sleep(60)\n",
    )
    process = subprocess.Popen([RUN, *line], cwd=ROOT, env=os.environ | programs.environment)
    try:
        while not programs.record.exists():
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(timeout=60) == status
    finally:
        process.kill()
        process.wait()


def test_apptainer(programs: StandIns):
    programs.writing_down("apptainer")
    mounts = {"CONTAINER_MOUNTS": "/fast/data:/data"}
    done = programs.run(RUN, CONFIG, "seed=1", CONTAINER="edm2 v1.sif", CONTAINER_RUNTIME="apptainer", **mounts)
    assert done.returncode == 0, done.stdout + done.stderr
    ((name, *found),) = programs.calls()
    logs = found[found.index("--stdout") + 1].removesuffix("/rank{rank}.out")
    binds = f"{ROOT},{logs},{programs.folder},/fast/data:/data"
    gpu = ["--nv"] if Path("/dev/nvidiactl").exists() else []
    assert [name, *found] == [
        *("apptainer", "exec", *gpu, "--bind", binds, "--pwd", str(ROOT), "edm2 v1.sif"),
        *("composer", "-n", "1", "--stdout", f"{logs}/rank{{rank}}.out", "--stderr", f"{logs}/rank{{rank}}.err"),
        *("/opt/edm2/recipe/train.py", CONFIG, "seed=1"),
    ]


def test_pyxis(programs: StandIns):
    programs.slurm()
    image = {"CONTAINER": "registry#edm2:1", "CONTAINER_RUNTIME": "pyxis", "CONTAINER_ROOT": "/code"}
    done = programs.run(RUN, CONFIG, "seed=1", CONTAINER_MOUNTS="/fast:/fast", **IN_A_JOB, **image)
    assert done.returncode == 0, done.stdout + done.stderr
    ((name, *found),) = programs.calls()
    assert name == "srun"
    assert "--container-image=registry#edm2:1" in found and f"--container-workdir={ROOT}" in found
    (mounts,) = [item.split("=", 1)[1].split(",") for item in found if item.startswith("--container-mounts=")]
    logs, tmp = programs.folder / "logs" / "41017", programs.folder
    assert mounts == [f"{ROOT}:{ROOT}", f"{logs}:{logs}", f"{tmp}:{tmp}", "/fast:/fast"]
    assert found[found.index("bash") + 1 :] == [
        *("/code/recipe/../launch/run.sh", "--on-node", "recipe/train.py", CONFIG, "seed=1"),
    ]


@pytest.mark.parametrize(
    ("line", "env", "message"),
    [
        ([RUN], {}, "usage: recipe/config.py CONFIG.yaml"),
        ([RUN, "nowhere.yaml"], {}, "nowhere.yaml: no such file"),
        ([RUN, "yamls"], {}, "is a folder, not a YAML file"),
        ([RUN, CONFIG], {"RANKS_PER_NODE": "3"}, "must be a multiple of the number of ranks, 3"),
        ([RUN, CONFIG], {"RANKS_PER_NODE": "two"}, "RANKS_PER_NODE = two: must be a whole number above 0; fix: "),
        ([RUN, CONFIG], {"RANKS_PER_NODE": "0"}, "RANKS_PER_NODE = 0: must be a whole number above 0; fix: "),
        ([RUN, CONFIG], {"VENV": "/nowhere"}, "/nowhere/bin/composer: no such program; fix: launch/install.sh"),
        ([RUN, CONFIG], {"CONTAINER": "a.sif"}, "CONTAINER_RUNTIME = '': must be pyxis or apptainer; fix: "),
        ([RUN, CONFIG], {"CONTAINER": "a.sif", "CONTAINER_RUNTIME": "lxc"}, "must be pyxis or apptainer; fix: "),
        ([RUN, CONFIG], {"CONTAINER": "a.sif", "CONTAINER_RUNTIME": "pyxis"}, "is a plugin of Slurm"),
        ([RUN, CONFIG], IN_A_JOB | {"SLURM_TASKS_PER_NODE": "8(x3)"}, "= 8(x3): must be 1 on every node"),
        ([RUN, CONFIG], IN_A_JOB | {"SLURM_TASKS_PER_NODE": "1(x2),2"}, "= 1(x2),2: must be 1 on every node"),
        ([RUN, CONFIG], IN_A_JOB | {"SLURM_GPUS": "h100:20"}, "must be the same number on each of 3 nodes"),
        ([RUN, CONFIG], {"RESTARTS": "often"}, "RESTARTS = often: must be a whole number; fix: "),
        ([RUN, "recipe/convert.py", "a.pkl"], {}, "recipe/convert.py: does not run on many ranks; fix: "),
        ([EVAL], {}, "usage: array_eval.sh RUN LENGTHS"),
        ([EVAL, "nowhere", "0.1"], {}, "nowhere: no such folder; fix: name a run"),
        ([EVAL, "yamls", "0.1", "--seeds", "0"], {"VENV": "/nowhere"}, "/nowhere/bin/python: no such program; fix: "),
        ([EVAL, "yamls", "0.1,x"], {}, "array_eval.sh: '0.1,x' is not a list of numbers and ranges"),
        ([EVAL, "yamls", "0.1,0.5"], {}, "lengths must be above 0 and below 12^-0.5"),
        ([EVAL, "yamls", "0.1"], {"SLURM_ARRAY_TASK_MAX": "4", "SLURM_ARRAY_TASK_COUNT": "2"}, "fix: --array=0-1"),
        ([SWEEP], {}, "usage: sweep.sh RUN --ref FILE"),
        ([SWEEP, "runs/edm2"], {"VENV": "/nowhere"}, "/nowhere/bin/python: no such program; fix: "),
        ([SWEEP, "runs/edm2"], {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MAX": "4"}, "fix: --array=0-0"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_refused(line: list[str], env: dict[str, str], message: str, programs: StandIns):
    programs.slurm()
    programs.writing_down("composer")
    assert_refused(programs.run(*line, **env), message)
    assert not programs.record.exists(), "something was started"


@pytest.mark.parametrize(("count", "dealt"), [(1, [[0, 1, 2]]), (2, [[0, 2], [1]]), (4, [[0], [1], [2], []])])
def test_lengths_are_dealt_out(count: int, dealt: list[list[int]], programs: StandIns):
    """Each length goes to one task of the array, however many there are, and wherever their numbers begin."""
    lengths = ["0.05", "0.1", "0.15"]
    script = f'case $1 in -c) exec "{sys.executable}" "$@" ;; *reconstruct.py) echo "$4" >>"{programs.record}" ;; esac'
    programs.write("python", f"#!/bin/sh\n{script}\n")
    for task, own in enumerate(dealt):
        programs.record.write_text("")
        array = {"ID": task + 5, "MIN": 5, "MAX": 4 + count, "COUNT": count}
        done = programs.run(
            EVAL, "yamls", ",".join(lengths), **{f"SLURM_ARRAY_TASK_{k}": str(v) for k, v in array.items()}
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert programs.record.read_text().split() == ([",".join(lengths[index] for index in own)] if own else [])


@pytest.mark.parametrize("count", [1, 3])
def test_a_sweep_is_shared_by_the_tasks_of_an_array(count: int, programs: StandIns):
    """Wherever their numbers begin; without Slurm it is one, and makes the table."""
    programs.writing_down("python")
    given = ["runs/a b", "--sigma-rel", "0.05,0.1", "--out", "s3://bucket/$(date)"]
    for task in range(count):
        array = {"ID": task + 5, "MIN": 5, "MAX": 4 + count, "COUNT": count}
        done = programs.run(SWEEP, *given, **{f"SLURM_ARRAY_TASK_{key}": str(value) for key, value in array.items()})
        assert done.returncode == 0, done.stdout + done.stderr
    assert programs.run(SWEEP, *given).returncode == 0
    script = str(ROOT / "recipe" / "sweep.py")
    expected = [["python", script, *given, "--task", f"{task}/{count}"] for task in range(count)]
    assert programs.calls() == [*expected, ["python", script, *given]]
