"""The Dockerfile and its scripts, without building: lint, what the image leaves out, command lines, signals."""

import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from helpers.commands import BIN, ROOT

BUILD, RUN = ROOT / "launch" / "docker_build.sh", ROOT / "launch" / "docker_run.sh"
ENTRYPOINT = [sys.executable, "-I", "-S", str(ROOT / "launch" / "entrypoint.py")]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SECRET = "the-secret-itself"


def test_dockerfile_is_clean():
    done = subprocess.run([BIN / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    assert "://" not in DOCKERFILE


def test_base_has_the_cuda_of_the_locked_torch():
    """What is installed here is what is locked."""
    version = re.search(r"\nARG BASE_IMAGE=docker\.io/nvidia/cuda:(\d+\.\d+)\.\d+-base-ubuntu24\.04\n", DOCKERFILE)
    assert version is not None and version[1] == torch.version.cuda  # pyright: ignore[reportAttributeAccessIssue]


def needed(*extras: str) -> set[str]:
    """Packages that the project needs with these extras, on this platform."""
    found: set[tuple[str, str]] = set()
    open_ends = [("edm2-recipe", extra) for extra in ("", *extras)]
    while open_ends:
        item = open_ends.pop()
        if item in found:
            continue
        found.add(item)
        for requirement in map(Requirement, importlib.metadata.requires(item[0]) or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": item[1]}):
                name = canonicalize_name(requirement.name)
                open_ends += [(name, extra) for extra in ("", *requirement.extras)]
    return {name for name, _ in found}


def test_image_leaves_out_what_only_development_needs():
    users = ("demo", "wandb", "mlflow", "hf", "vae", "evaluate")
    left_out = (ROOT / "launch" / "dev_only.txt").read_text().split()
    assert set(left_out) == needed(*users, "dev") - needed(*users)


def stand_in(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


class Engines:
    """Stand-ins for docker, podman and nvidia-smi; the last command line of an engine is kept, one word a line."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.answers("docker", "podman")

    def answers(self, *names: str) -> None:
        """Only these engines answer."""
        for name in ("docker", "podman"):
            status = 0 if name in names else 1
            script = f'[ "$1" = info ] && exit {status}; printf "%s\\n" {name} "$@" >"{self.folder}/line"'
            stand_in(self.folder / "bin", name, script)

    def call(self, *command: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        settings = {"DATA_FOLDER": f"{self.folder}/data", "RUNS_FOLDER": f"{self.folder}/runs"} | env
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "S3_"))}
        path = {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}
        (self.folder / "line").unlink(missing_ok=True)
        return subprocess.run(
            list(map(str, command)),
            env=inherited | settings | path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def line(self, *command: str | Path, **env: str) -> list[str]:
        """The command line that an engine got."""
        done = self.call(*command, **env)
        assert done.returncode == 0, done.stdout + done.stderr
        return (self.folder / "line").read_text().splitlines()


@pytest.fixture
def engines(tmp_path: Path) -> Engines:
    return Engines(tmp_path)


def test_credentials_enter_by_name(engines: Engines, tmp_path: Path):
    file = tmp_path / "credentials"
    file.touch()
    secrets = {
        "AWS_ACCESS_KEY_ID": SECRET,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_SESSION_TOKEN": SECRET,
        "S3_ENDPOINT_URL": f"https://{SECRET}",
        "WANDB_API_KEY": SECRET,
        "MLFLOW_TRACKING_TOKEN": SECRET,
    }
    line = engines.line(RUN, "true", **secrets, AWS_SHARED_CREDENTIALS_FILE=str(file), HOME_SECRET=SECRET)
    passed = [line[index + 1] for index, word in enumerate(line) if word == "--env"]
    assert {*secrets, "AWS_SHARED_CREDENTIALS_FILE"} <= set(passed) and "HOME_SECRET" not in passed
    assert not any("=" in name for name in passed) and SECRET not in "".join(line)
    assert f"{file}:{file}:ro" in line
    assert "WANDB_API_KEY" not in engines.line(RUN, "true")


def test_command_and_options_arrive_as_given(engines: Engines):
    words = ["--name", "a run", "--", "composer", "-n", "2", "run_name=$(touch x) 'y'", "--", "*"]
    line = engines.line(RUN, *words, IMAGE="registry.example/edm2:1")
    assert line[:2] == ["docker", "run"]
    assert line[line.index("--name") :] == [*words[:2], "registry.example/edm2:1", *words[3:]]
    assert "--rm" in line and "--rm" not in engines.line(RUN, "--detach", "--", "true")
    assert f"{engines.folder}/runs:/opt/edm2/runs" in line and f"{engines.folder}/data:/opt/edm2/data" in line
    assert engines.line(RUN, "true")[-2:] == ["edm2-recipe:latest", "true"]


def test_gpus(engines: Engines):
    assert "--gpus" not in engines.line(RUN, "true", GPUS="none")
    stand_in(engines.folder / "bin", "nvidia-smi", "exit 0")
    line = engines.line(RUN, "true")
    assert line[line.index("--gpus") + 1] == "all"
    assert "--gpus" not in engines.line(RUN, "true", GPUS="none")
    stand_in(engines.folder / "bin", "nvidia-smi", "exit 9")
    assert "--gpus" not in engines.line(RUN, "true")


def test_the_engine_that_answers(engines: Engines):
    engines.answers("podman")
    assert engines.line(RUN, "true")[0] == "podman"
    assert engines.line(BUILD)[0] == "podman"
    engines.answers("docker", "podman")
    assert engines.line(RUN, "true", ENGINE="podman")[0] == "podman"


def test_build_names_version_and_commit(engines: Engines):
    line = engines.line(BUILD, "--network", "host", BASE_IMAGE="base:1", IMAGE="host:5000/edm2")
    revision = ["git", "-c", "safe.directory=*", "rev-parse", "--short=12", "HEAD"]  # also in another user's checkout
    commit = subprocess.check_output(revision, cwd=ROOT, text=True).strip()
    tags = [line[index + 1] for index, word in enumerate(line) if word == "--tag"]
    assert re.fullmatch(rf"host:5000/edm2:0\.1\.0-{commit}(-dirty)?", tags[0]) and tags[1] == "host:5000/edm2:latest"
    assert "BASE_IMAGE=base:1" in line and line[-3:] == ["--network", "host", "."]
    assert not any(word.startswith("BASE_IMAGE=") for word in engines.line(BUILD))


@pytest.mark.parametrize(
    ("command", "env", "message"),
    [
        ([RUN], {}, "the command is missing; for example: docker_run.sh composer"),
        ([RUN, "--detach"], {}, '--detach: options of the engine must end with "--", before the command'),
        ([RUN, "--detach", "--"], {}, "the command is missing"),
        ([RUN, "true"], {"ENGINE": "rkt"}, "ENGINE=rkt: must be docker or podman; leave it out"),
        ([RUN, "true"], {"GPUS": "2"}, "GPUS=2: must be auto, all or none; choose single ones with CUDA_VISIBLE"),
        ([RUN, "true"], {"GPUS": "all", "ENGINE": "podman"}, "GPUS=all: podman must find the GPUs described in"),
        ([RUN, "true"], {"DATA_FOLDER": "/a:b"}, 'DATA_FOLDER=/a:b: must not contain ":"'),
        ([RUN, "true"], {"RUNS_FOLDER": "/dev/null"}, "RUNS_FOLDER=/dev/null: must be a folder"),
        ([RUN, "true"], {"DATA_FOLDER": "/dev/null/x"}, "DATA_FOLDER=/dev/null/x: must be a folder that can be made"),
        ([RUN, "true"], {"AWS_CA_BUNDLE": "ca.pem"}, "AWS_CA_BUNDLE=ca.pem: must be the absolute path of a file"),
        ([BUILD], {"ENGINE": "rkt"}, "ENGINE=rkt: must be docker or podman"),
        ([BUILD], {"IMAGE": "edm2:1"}, "IMAGE=edm2:1: must be a name without tag"),
    ],
)
def test_refusals(engines: Engines, command: list, env: dict[str, str], message: str):
    done = engines.call(*command, **env)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not (engines.folder / "line").exists()


@pytest.mark.parametrize("script", [BUILD, RUN])
@pytest.mark.parametrize("engine", ["", "docker"])
def test_no_engine_answers(engines: Engines, script: Path, engine: str):
    engines.answers("podman" if engine else "")
    done = engines.call(script, "true", ENGINE=engine)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert f"{engine or 'docker and podman'}: must answer to" in done.stderr


@pytest.mark.parametrize(
    ("command", "status"),
    [(["sh", "-c", "exit 75"], 75), (["sh", "-c", "kill -9 $$"], 137), (["no-such-program"], 127), (["/"], 126)],
    ids=str,
)
def test_entrypoint_ends_as_the_command(command: list[str], status: int):
    done = subprocess.run([*ENTRYPOINT, *command], capture_output=True, text=True, timeout=60)
    assert done.returncode == status
    if status in (126, 127):
        assert done.stderr.startswith(f"entrypoint.py: {command[0]}: ") and len(done.stderr.splitlines()) == 1


# A launcher that dies of signals, two ranks that save, each with a loader that must not be told.
LAUNCHER = """
import os, subprocess, sys
loader = 'import os, time; os.write(1, b"loading" + bytes([10])); time.sleep(60)'
rank = f'''
import os, signal, subprocess, sys
def save(number, frame):
    os.write(1, f"saved on {{number}}".encode() + bytes([10]))  # at once, so that the ranks' lines do not mix
    loader.kill()
    sys.exit(75)
signal.signal(signal.SIGTERM, save); signal.signal(signal.SIGUSR1, save)
loader = subprocess.Popen([sys.executable, "-c", {loader!r}])
status = loader.wait()
print("loader ended", status, flush=True)
'''
environment = lambda index: os.environ | {"LOCAL_RANK": str(index)}
ranks = [subprocess.Popen([sys.executable, "-c", rank], env=environment(index)) for index in range(2)]
sys.exit(max([rank.wait() for rank in ranks]))
"""


@pytest.mark.parametrize(
    ("sent", "received"),
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGUSR1, signal.SIGUSR1), (signal.SIGINT, signal.SIGTERM)],
)
@pytest.mark.parametrize("shell", [False, True], ids=["launcher", "launcher below a shell"])
def test_entrypoint_tells_the_ranks(sent: signal.Signals, received: signal.Signals, shell: bool, tmp_path: Path):
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    command = [sys.executable, str(tmp_path / "launcher.py")]
    if shell:
        command = ["sh", "-c", f"{' '.join(command)}; exit $?"]
    process = subprocess.Popen([*ENTRYPOINT, *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["loading\n"] * 2
    process.send_signal(sent)
    printed, _ = process.communicate(timeout=30)
    assert printed.splitlines() == [f"saved on {received.value}"] * 2
    assert process.returncode == 75


def test_entrypoint_tells_a_command_without_ranks():
    process = subprocess.Popen([*ENTRYPOINT, "sh", "-c", "echo ready; exec sleep 60"], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert time.monotonic() - begin < 10
    process.stdout.close()
