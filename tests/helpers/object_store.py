"""A real S3 server (SeaweedFS) on loopback: it checks signatures, reads ranges, and survives kill -9."""

import ctypes
import json
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from helpers.commands import BIN

BUCKET = "edm2"
KEYS = {"admin": "full-rights-secret", "renewed": "other-secret", "reader": "read-only-secret"}  # access key: secret
ALL_RIGHTS = ["Admin", "Read", "Write", "List", "Tagging"]
ACTIONS = {"admin": ALL_RIGHTS, "renewed": ALL_RIGHTS, "reader": ["Read", "List"]}
PARTS = ["s3.port", "master.port", "volume.port", "filer.port", "admin.port"]
OFF = ["-s3.port.iceberg=0", "-s3.port.lance=0", "-admin.ui=false", "-webdav=false", "-master.telemetry=false"]
GRPC = 10_000  # added to each port by the server, for its own use
START_SECONDS = 60

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
# The signal is sent when the thread that started the server ends, so that thread must last as long as the process.
_STARTER = ThreadPoolExecutor(1)


def environment(endpoint: str, access_key: str = "admin", secret_key: str | None = None) -> dict[str, str]:
    """Variables with which a command of the project, Composer and streaming reach the server."""
    return {
        "S3_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key or KEYS[access_key],
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


class ObjectStore:
    """One server with one bucket, over a data folder and ports that stay the same across restarts."""

    bucket = BUCKET

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="object-store-"))
        self.ports = _free_ports()
        self.endpoint = f"http://127.0.0.1:{self.ports['s3.port']}"
        self.environment = environment(self.endpoint)
        self.read_only_environment = environment(self.endpoint, "reader")
        identities = [
            {"name": key, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": ACTIONS[key]}
            for key, secret in KEYS.items()
        ]
        (self.folder / "s3.json").write_text(json.dumps({"identities": identities}))
        (self.folder / "data").mkdir()
        self.process: subprocess.Popen | None = None
        self.start()

    def start(self) -> None:
        """Start the server, or start it again after `kill`; returns when it answers."""
        assert self.process is None, "already running"
        ports = [f"-{name}={port}" for name, port in self.ports.items()]
        where = [f"-dir={self.folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        identities = [f"-s3.config={self.folder / 's3.json'}", f"-bucket={BUCKET}"]
        command = [str(BIN / "weed"), "-logtostderr=true", "mini", *where, *ports, *OFF, *identities]
        self.process = _STARTER.submit(_launch, command, self.folder).result()
        self._wait()

    def kill(self) -> None:
        """End the server as a power failure would."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        for port in self.ports.values():
            for number in (port, port + GRPC):  # sockets that a killed server leaves behind, outside its folder
                for left in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
                    left.unlink(missing_ok=True)

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not (_answers(f"{self.endpoint}/healthz") and self._has_bucket()):
            ended = self.process is None or self.process.poll() is not None
            if ended or time.monotonic() > deadline:
                log = (self.folder / "log").read_text(errors="replace")[-3000:]
                raise RuntimeError(f"the S3 server {'ended' if ended else 'does not answer'}:\n{log}")
            time.sleep(0.1)

    def _has_bucket(self) -> bool:
        """Whether the bucket is there, which the server makes only after it says that it is healthy."""
        return _answers(f"http://127.0.0.1:{self.ports['filer.port']}/buckets/{BUCKET}/?limit=1")


def _launch(command: list[str], folder: Path) -> subprocess.Popen:
    with open(folder / "log", "ab") as log:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=_die_with_parent,
            start_new_session=True,
        )


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_ports() -> dict[str, int]:
    """Ports below those that the system hands out, so that nobody takes them while the server is down."""
    found: list[int] = []
    while len(found) < len(PARTS):
        port = random.SystemRandom().randint(10_000, 22_000)
        if port not in found and _is_free(port) and _is_free(port + GRPC):
            found.append(port)
    return dict(zip(PARTS, found, strict=True))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
