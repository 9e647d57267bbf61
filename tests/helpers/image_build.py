"""Builds and runs the image for real with podman and runc: no daemon, no registry, on a base made here.

podman's storage is kept between runs of the tests, so that only layers that changed are built again: about 12 GB below
~/.cache/edm2-recipe, in a folder for this lock file and this Dockerfile; those of earlier ones are deleted.
"""

import ast
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from helpers.commands import ROOT

PACKAGES = ["podman", "runc", "mmdebstrap"]
FREE_GB = 25  # the layers, their unpacked copy while they are committed, and what pip unpacks
BASE = "localhost/base:test"
PREFIX = "image-build-"
STORAGE_PREFIX = f"{PREFIX}2-"  # another number where what is kept was made in another way
KEYS = ["Dockerfile", "requirements.lock", "launch/dev_only.txt"]  # what decides the layers that take long
SETTINGS = ["index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout", "retries"]  # of pip
SOURCES = ["sources.list.d/debian.sources", "sources.list.d/ubuntu.sources", "sources.list"]  # of apt

# Limits below those of this machine, which may lack the right to raise them; all state in the tests' own folder.
CONTAINERS_CONF = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "{state}/libpod"
"""
STORAGE_CONF = """
[storage]
driver = "overlay"
graphroot = "{folder}/storage"
runroot = "{state}/run"
"""


def need_builder() -> None:
    """Install podman if it is missing; skips with the reason where that cannot be, fails for it in CI."""
    reason = None
    if os.getuid() != 0:
        reason = "builds the image as root"
    elif shutil.disk_usage(tempfile.gettempdir()).free < FREE_GB * 1e9:
        reason = f"needs {FREE_GB} GB in {tempfile.gettempdir()}"
    elif not all(map(shutil.which, PACKAGES)):
        reason = _install()
    if reason is not None and os.environ.get("CI"):
        pytest.fail(f"image tests must run in CI, but: {reason}")
    if reason is not None:
        pytest.skip(reason)


def _install() -> str | None:
    if shutil.which("apt-get") is None:
        return f"{', '.join(PACKAGES)} are missing, and there is no apt-get to install them"
    options = ["-qq", "-o", "DPkg::Lock::Timeout=120"]
    for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(["apt-get", *options, *command], env=env, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            return f"apt-get {command[0]} failed: {done.stderr.strip().splitlines()[-1:]}"
    return None


class Builder:
    """A podman of its own, below `folder`, which close() removes, with the storage below `kept`, which stays."""

    def __init__(self):
        _remove_leftovers()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        self.kept, self.state, self._lock = _keep(self.folder)
        for name in ("tmp", "data", "runs"):
            (self.folder / name).mkdir()
        for name, text in {"containers.conf": CONTAINERS_CONF, "storage.conf": STORAGE_CONF}.items():
            (self.folder / name).write_text(text.format(folder=self.kept, state=self.state))
        for name in ("data", "runs"):
            (self.folder / name).chmod(0o1777)
        self.environment = {
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
            "TMPDIR": str(self.folder / "tmp"),
            "BUILDAH_ISOLATION": "chroot",  # needs no rights over namespaces
            "ENGINE": "podman",
            "BASE_IMAGE": BASE,
            "IMAGE": "localhost/edm2-test:latest",
            "DATA_FOLDER": str(self.folder / "data"),
            "RUNS_FOLDER": str(self.folder / "runs"),
        }

    def podman(self, *arguments: str, timeout: float = 120) -> str:
        """Run podman; returns what it prints on both streams."""
        done = self._run(["podman", *arguments], {}, timeout)
        assert done.returncode == 0, f"podman {' '.join(arguments)}: {done.stdout}"
        return done.stdout

    def make_base(self) -> None:
        """A minimal image of this machine's distribution, unless one was kept."""
        if self._run(["podman", "image", "exists", BASE], {}, 120).returncode == 0:
            return
        archive = self.folder / "base.tar"
        sources = [str(path) for name in SOURCES if (path := Path("/etc/apt") / name).is_file()]
        suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
        command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", suite, str(archive), *sources]
        done = self._run(command, {}, 300)
        assert done.returncode == 0, done.stdout
        self.podman("import", "--quiet", str(archive), BASE)
        archive.unlink()

    def build(self, root: Path = ROOT, timeout: float = 1200) -> str:
        """Build the image from a checkout, as its user would; returns what the builder prints."""
        secrets = [f"id={name},src={path}" for name, path in self._pip_secrets().items()]
        options = ["--network=host", "--pull=never", *(word for text in secrets for word in ("--secret", text))]
        name = {"IMAGE": self.environment["IMAGE"].removesuffix(":latest")}
        done = self._run([str(root / "launch" / "docker_build.sh"), *options], name, timeout)
        assert done.returncode == 0, done.stdout[-5000:]
        return done.stdout

    def run(self, *arguments: str, env: dict[str, str] | None = None, timeout: float = 300):
        """launch/docker_run.sh with these arguments; both streams are in `stdout`."""
        return self._run([str(ROOT / "launch" / "docker_run.sh"), *arguments], env or {}, timeout)

    def close(self) -> None:
        self._run(["podman", "rm", "--all", "--force", "--time", "0"], {}, 120)
        self._run(["podman", "image", "prune", "--force"], {}, 300)  # what no image of now is made of
        _unmount(self.kept)
        _remove(self.state)
        os.close(self._lock)
        _remove(self.folder)

    def _run(self, command: list[str], env: dict[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=os.environ | self.environment | env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )

    def _pip_secrets(self) -> dict[str, Path]:
        """This machine's settings of pip as files: where packages come from, and whose certificates count."""
        settings = pip_settings()
        lines = ["[global]"]
        for key in SETTINGS:
            remote = [word for word in settings.get(key, "").split() if not word.startswith("file:")]
            if remote:
                lines.append(f"{key} = {' '.join(remote)}")
        secrets = {"pip_conf": self.folder / "pip.conf"}
        authority = settings.get("cert") or os.environ.get("SSL_CERT_FILE")
        if authority and Path(authority).is_file():
            secrets["ca_bundle"] = Path(authority)
            lines.append("cert = /run/secrets/ca_bundle")
        secrets["pip_conf"].write_text("\n".join(lines) + "\n")
        return secrets


def pip_settings() -> dict[str, str]:
    """What configures pip here, in files and in the environment, which wins."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    found: dict[str, str] = {}
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        key, _, value = line.partition("=")
        name = key.rsplit(".", 1)[-1]
        if key.startswith(":env:") or name not in found:
            found[name] = ast.literal_eval(value)
    return found


def _remove_leftovers() -> None:
    """What tests left that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        pid = folder.name.removeprefix(PREFIX).split("-")[0]
        if not Path(f"/proc/{pid}").exists():
            _remove(folder)


def _keep(folder: Path) -> tuple[Path, Path, int]:
    """Where storage is kept, where its state lies, and the lock on both; `folder` where other tests use them now.

    podman's own clean-up after a container refuses a path of its state of more than 50 characters, without a word, and
    `podman run` then waits 20 s for it. The path may not change either: it is noted in the storage.
    """
    digest = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in KEYS)).hexdigest()[:12]
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edm2-recipe"
    kept, state = caches / f"{STORAGE_PREFIX}{digest}", Path(f"/run/edm2-{digest}")
    kept.mkdir(parents=True, exist_ok=True)
    for other in caches.glob(f"{PREFIX}*"):
        if other != kept and (lock := _lock(other)) is not None:
            _remove(other)
            os.close(lock)
    lock = _lock(kept)
    if lock is None:
        return folder, folder / "state", os.open(folder, os.O_RDONLY)
    _remove(state)  # of containers that a killed run of the tests left
    return kept, state, lock


def _lock(folder: Path) -> int | None:
    """A lock that lasts until its descriptor is closed; None if another process holds it."""
    lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _remove(folder: Path) -> None:
    _unmount(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _unmount(folder: Path) -> None:
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in sorted((mount for mount in mounts if mount.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "--lazy", mount], check=False)
