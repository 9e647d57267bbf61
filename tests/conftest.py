import ctypes
import gc
import os
import secrets
import signal
import subprocess

# Tests, their ranks and their loader workers share few cores: spinning OpenMP threads would slow all of them a lot.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# What a shell starts in the background ignores SIGINT, and so would all that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

CLONE_NEWNS = 0x00020000  # from linux/sched.h

if TYPE_CHECKING:
    from helpers.fault_proxy import FaultProxy
    from helpers.object_store import ObjectStore
    from helpers.slurm_cluster import SlurmCluster
    from recipe.storage.places import Place


def pytest_configure() -> None:
    """Where root may, give each of several processes a /dev/shm of its own, as on machines of their own.

    Runs that start at the same moment can choose the same names there: streaming first looks for free ones, then takes
    them.
    """
    gc.disable()  # during the imports, whose objects all stay, it takes a fifth of their time
    if "PYTEST_XDIST_WORKER" in os.environ and ctypes.CDLL(None).unshare(CLONE_NEWNS) == 0:
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], check=True)


def pytest_collection_finish() -> None:
    gc.enable()
    gc.freeze()


TOGETHER = [
    {"test_cluster_storage.py", "test_kills.py", "test_launch.py"},
    {"test_slurm.py", "test_slurm_signals.py"},
    {"test_image.py"},
    {"test_quickstart.py"},
    {"test_distributed.py"},
]
"""Files whose tests share what is dear to set up: an image, a Slurm cluster, a run of two ranks. The longest first."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """On several processes a file stays in one, for its fixtures, and so do files that are together.

    pytest-xdist's own groups have no effect under pytest 9, which does not let it rename tests.
    """
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = super()._split_scope(nodeid)
            return str(_group(path)) if _group(path) < len(TOGETHER) else path

    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that no process is left alone with it at the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: _group(str(item.path)))


def _group(path: str) -> int:
    """Which of TOGETHER a file belongs to; as many as there are for the others."""
    name = path.rpartition("/")[2]
    return next((number for number, files in enumerate(TOGETHER) if name in files), len(TOGETHER))


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded digits at 8x8 pixels as MDS shards; read-only."""
    from recipe.preparation.pipeline import prepare

    out = tmp_path_factory.mktemp("data") / "digits"
    prepare("digits", out, resolution=8, encoding="png")
    return out


@pytest.fixture(scope="session")
def object_store() -> Iterator["ObjectStore"]:
    """A running S3 server, which this process's environment names; a test that kills it starts it again."""
    from helpers.object_store import ObjectStore

    store = ObjectStore()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        yield store
    store.close()


@pytest.fixture(scope="session")
def two_ranks(digits: Path, object_store: "ObjectStore") -> "Place":
    """The run of helpers/two_ranks.py without disturbance: what all others like it must end in; read-only."""
    from helpers.commands import TRAIN
    from helpers.forks import run_forked
    from helpers.two_ranks import SNAPSHOTS, arguments
    from recipe.storage.addresses import open_place

    place = open_place(f"s3://{object_store.bucket}/two-ranks")
    done = run_forked(TRAIN, *arguments(digits, place.address), ranks=2, env=object_store.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(place.list("snapshots/")) == SNAPSHOTS
    return place


@pytest.fixture
def bucket_folder(object_store: "ObjectStore", request: pytest.FixtureRequest) -> str:
    """An empty `s3://bucket/prefix` of the test's own."""
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    return f"s3://{object_store.bucket}/{name[:60]}-{secrets.token_hex(4)}"


@pytest.fixture
def fault_proxy(object_store: "ObjectStore", monkeypatch: pytest.MonkeyPatch) -> Iterator["FaultProxy"]:
    """A proxy before the S3 server, which this process's environment names as the endpoint; no faults at first."""
    from helpers.fault_proxy import FaultProxy
    from helpers.object_store import environment

    with FaultProxy(object_store.endpoint, share=0.0) as proxy:
        for name, value in environment(proxy.endpoint).items():
            monkeypatch.setenv(name, value)
        yield proxy


@pytest.fixture(scope="session")
def cluster() -> Iterator["SlurmCluster"]:
    """A real Slurm cluster of two nodes; skips where none can be started."""
    from helpers.slurm_cluster import SlurmCluster, reason_to_skip

    reason = reason_to_skip()
    if reason is not None:
        pytest.skip(reason)
    cluster = SlurmCluster()
    yield cluster
    cluster.close()


@pytest.fixture(scope="session")
def vae_model() -> Any:
    """A small autoencoder with random weights as diffusers has it: the reference."""
    from helpers.small_vae import build

    return build()


@pytest.fixture(scope="session")
def vae(vae_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this autoencoder; read-only."""
    folder = tmp_path_factory.mktemp("models") / "small-vae"
    vae_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vae_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures for it; read-only."""
    from helpers.small_vae import save_pictures

    folder = tmp_path_factory.mktemp("pictures")
    save_pictures(folder)
    return folder


@pytest.fixture(scope="session")
def encoded(vae: Path, vae_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of their latents; read-only."""
    from helpers.small_vae import SMALL
    from recipe.preparation.pipeline import prepare

    out = tmp_path_factory.mktemp("data") / "latents"
    prepare(str(vae_pictures), out, vae=str(vae), **SMALL)
    return out
