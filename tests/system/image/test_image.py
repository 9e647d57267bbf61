"""The image, built for real and run without network, as other users, against a real S3 server, and stopped."""

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.commands import ROOT, TINY_RUN, tensorboard
from helpers.image_build import Builder, need_builder
from helpers.object_store import ObjectStore
from helpers.terminal import CTRL_C, Terminal
from recipe.storage.addresses import open_place
from recipe.training.run import EXIT_PREEMPTED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1400)]
NO_NETWORK = ["--network", "none"]
OTHER_USER = ["--user", "4321:8765"]


def train(ranks: int, *overrides: str) -> list[str]:
    """The command that trains the tiny run in the image; its results are in runs/{run_name}."""
    chosen = dict(item.split("=", 1) for item in (*TINY_RUN, "data.local=data/digits", *overrides))
    arguments = [f"{key}={value}" for key, value in chosen.items()]
    return ["composer", "-n", str(ranks), "recipe/train.py", "yamls/edm2.yaml", *arguments]


@pytest.fixture(scope="module")
def built() -> Iterator[Builder]:
    """The image, built from this checkout, and the digits in its data folder."""
    need_builder()
    builder = Builder()
    try:
        builder.make_base()
        builder.build()
        prepare = ["python", "recipe/prepare.py", "digits", "--out", "data/digits", "--resolution", "8"]
        done = builder.run(*NO_NETWORK, "--", *prepare)
        assert done.returncode == 0, done.stdout
        yield builder
    finally:
        builder.close()


def test_examines_itself(built: Builder, tmp_path: Path):
    """Without a command, as the image's own user; and as any other, who may not write to a folder of root."""
    own = built.podman("run", "--rm", *NO_NETWORK, built.environment["IMAGE"])
    assert "self-check passed" in own and "user: 10001:10001, not root" in own
    assert "GPUs: none is visible" in own or "with CUDA 12.6" in own
    tmp_path.chmod(0o755)
    done = built.run(*NO_NETWORK, *OTHER_USER, "--", "self-check", env={"DATA_FOLDER": str(tmp_path)})
    assert done.returncode == 1 and f"user: {OTHER_USER[1]}, not root" in done.stdout
    failures = [line for line in done.stdout.splitlines() if "FAILED" in line]
    assert len(failures) == 1 and "FAILED  folders: /opt/edm2/data: Permission denied" in failures[0], done.stdout


def test_self_check_notices(built: Builder):
    """Root, a missing package, another version, a library that is damaged."""
    damage = (
        "cd /opt/venv/lib/python3*/site-packages; pip uninstall --quiet --yes tensorboard 2>&1; "
        "rm torchvision/ops/__init__.py; "
        "sed -i 's/^Version: .*/Version: 2.3.9/' omegaconf-*.dist-info/METADATA; "
        "exec python /opt/edm2/launch/self_check.py"
    )
    done = built.run(*NO_NETWORK, "--user", "0:0", "--", "bash", "-c", damage)
    assert done.returncode == 1, done.stdout
    for expected in (
        "FAILED  packages: ",
        "tensorboard==2.20.0 is missing",
        "omegaconf is 2.3.9, locked is ==2.4.0",
        "FAILED  imports: import torchvision: ",
        "FAILED  user: is root",
        "self-check failed",
    ):
        assert expected in done.stdout, done.stdout


def test_keeps_no_setting_of_the_build(built: Builder):
    image = built.environment["IMAGE"]
    history = built.podman("history", "--no-trunc", image)
    labels = built.podman("inspect", "--format", "{{.Labels}} {{.Config.Env}} {{.User}}", image)
    for secret in [line.split(" = ")[1] for line in (built.folder / "pip.conf").read_text().splitlines()[1:]]:
        if not secret.isdecimal() and not secret.startswith("/run/"):
            assert secret not in history + labels
    assert "10001:10001" in labels and "org.opencontainers.image.revision:" in labels
    left = "exec 2>/dev/null; cat /etc/pip.conf /run/secrets/*; ls -A /root/.cache/pip /var/lib/apt/lists /run/secrets"
    done = built.run(*NO_NETWORK, "--user", "0:0", "--", "bash", "-c", left)
    assert all(word.endswith(":") for word in done.stdout.split()), done.stdout  # names of folders, no content
    holds = built.run(*NO_NETWORK, "--", "ls", "-A").stdout.split()
    assert sorted(holds) == sorted(
        ["LICENSE", "README.md", "data", "launch", "pyproject.toml", "recipe", "requirements.lock", "runs", "yamls"]
    )


def test_trains_without_network_as_any_user(built: Builder):
    done = built.run(*NO_NETWORK, *OTHER_USER, "--", *train(2, "duration=8ba", "run_name=offline"))
    assert done.returncode == 0, done.stdout
    files = [path for path in (built.folder / "runs" / "offline").rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in files)
    assert {(path.stat().st_uid, path.stat().st_gid) for path in files} == {(4321, 8765)}


def test_saves_to_s3_and_fetches(built: Builder, object_store: ObjectStore):
    """The credentials are those of this process's environment; nothing but their names is on a command line."""
    address = f"s3://{object_store.bucket}/from-the-image"
    host = ["--network", "host"]
    _, _, _, script, *arguments = train(1, "duration=8ba", "run_name=stored", f"save_folder={address}")
    done = built.run(*host, "--", "python", script, *arguments, env=object_store.environment)
    assert done.returncode == 0, done.stdout
    kept = {entry.name: entry.size for entry in open_place(address).list()}
    assert any(name.startswith("snapshots/") for name in kept) and any(name.startswith("checkpoints/") for name in kept)
    fetch = ["python", "recipe/fetch.py", address, "--out", "runs/fetched"]
    done = built.run(*host, "--", *fetch, env=object_store.environment)
    assert done.returncode == 0, done.stdout
    fetched = built.folder / "runs" / "fetched"
    for path in fetched.glob("snapshots/*"):
        assert path.stat().st_size == kept[f"snapshots/{path.name}"]
    assert len(list(fetched.glob("snapshots/*"))) == sum(name.startswith("snapshots/") for name in kept)


def test_stops_and_goes_on(built: Builder):
    """`docker stop` saves and ends with status 75; `docker start` goes on with the next batch."""
    line = train(1, "run_name=stopped", "duration=100000ba", "checkpoints.interval=100000ba", "logging.interval=1ba")
    started = built.run(*NO_NETWORK, "--detach", "--name", "stops", "--", *line)
    assert started.returncode == 0, started.stdout
    folder = built.folder / "runs" / "stopped"
    already = 0
    for count in (1, 2):
        wait_for_a_batch(built, "stops", already)
        built.podman("stop", "stops")
        log = built.podman("logs", "stops")
        state = built.podman("inspect", "--format", "{{.State.ExitCode}} {{.State.Status}}", "stops").split()
        assert state[0] == str(EXIT_PREEMPTED), f"{state} {log[-3000:]}"
        assert "saving and stopping after batch" in log
        assert len(list((folder / "checkpoints").glob("ba*-rank0.pt"))) == count
        if count == 1:
            already = len(log)
            built.podman("start", "stops")
    steps = [event.step for event in tensorboard(folder).Scalars("loss/train/total")]
    assert steps == list(range(len(steps)))


def wait_for_a_batch(built: Builder, name: str, already: int) -> None:
    """Until the log says, behind its first `already` letters, that a batch was trained."""
    deadline = time.monotonic() + 200
    while "Train loss/train/total" not in built.podman("logs", name)[already:]:
        status = built.podman("inspect", "--format", "{{.State.Status}}", name).strip()
        assert status == "running" and time.monotonic() < deadline, built.podman("logs", name)[-3000:]
        time.sleep(0.5)


RANK_THAT_SAVES_FOR_LONG = """
import os, signal, time
def save(*_):
    os.write(1, b"saves\\n")
    time.sleep(100)
signal.signal(signal.SIGTERM, save)
os.write(1, b"trains\\n")
time.sleep(100)
"""


def test_ctrl_c_twice_ends_a_container_at_once(built: Builder):
    (built.folder / "data" / "rank.py").write_text(RANK_THAT_SAVES_FOR_LONG)
    line = [str(ROOT / "launch" / "docker_run.sh"), *NO_NETWORK, "--", "composer", "-n", "1", "data/rank.py"]
    with Terminal(line, built.environment) as terminal:
        terminal.wait_for("trains")
        terminal.press(CTRL_C)
        terminal.wait_for("saves")
        terminal.press(CTRL_C)
        begin = time.monotonic()
        try:
            assert terminal.wait(30) == 128 + signal.SIGKILL
        except AssertionError:
            print(
                built.podman("ps", "--all"),
                subprocess.run(["ps", "-ef", "--forest"], capture_output=True, text=True, check=False).stdout,
            )
            raise
        assert time.monotonic() - begin < 10 and "Traceback" not in terminal.shown


def test_a_change_of_code_installs_nothing_again(built: Builder, tmp_path: Path):
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("Dockerfile", ".dockerignore", "pyproject.toml", "requirements.lock", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    for name in ("recipe", "yamls", "launch"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    with open(checkout / "recipe" / "ranks.py", "a") as source:
        source.write("CHANGED = True\n")
    (checkout / ".env").write_text("AWS_SECRET_ACCESS_KEY=stays-outside\n")
    begin = time.monotonic()
    printed = built.build(checkout)
    assert time.monotonic() - begin < 60, printed
    assert "Downloading" not in printed and "Using cache" in printed
    look = "from recipe.ranks import CHANGED; import os; print(CHANGED, os.path.exists('.env'))"
    done = built.run(*NO_NETWORK, "--", "python", "-c", look)
    assert done.stdout.split() == ["True", "False"], done.stdout
