"""Training on two sharded ranks with a bad network, none, foreign pickles and wrong credentials."""

import os
import pickle
import time
from pathlib import Path

import pytest

from helpers.commands import TRAIN, assert_refused
from helpers.fault_proxy import FaultProxy
from helpers.forks import Forked, run_forked
from helpers.object_store import ObjectStore, environment
from helpers.runs import stored_snapshots
from helpers.two_ranks import SNAPSHOTS, arguments
from recipe.storage.addresses import open_place
from recipe.storage.places import Place
from recipe.weights.checkpoints import newest_whole

pytestmark = pytest.mark.slow


def test_a_tenth_of_the_requests_fail(two_ranks: Place, digits: Path, object_store: ObjectStore, tmp_path: Path):
    """Data streamed from the store, snapshots and checkpoints into it; the result is the same bit for bit."""
    remote = open_place(f"s3://{object_store.bucket}/digits")
    for path in digits.iterdir():
        remote.upload(path.name, path)
    folder = f"s3://{object_store.bucket}/faulty"
    with FaultProxy(object_store.endpoint, share=0.1, seed=3) as proxy:
        overrides = (f"data.remote={remote.address}", f"data.local={tmp_path / 'cache'}")
        line = arguments(digits, folder, *overrides)
        done = run_forked(TRAIN, *line, ranks=2, env=environment(proxy.endpoint))
        assert done.returncode == 0, done.stdout + done.stderr
        assert sum(proxy.counts[kind] for kind in proxy.kinds) >= 5
    assert stored_snapshots(open_place(folder)) == stored_snapshots(two_ranks)
    assert len(stored_snapshots(open_place(folder))) == SNAPSHOTS


def test_the_network_goes_for_good(digits: Path, object_store: ObjectStore):
    folder = f"s3://{object_store.bucket}/cut-off"
    with FaultProxy(object_store.endpoint, share=0) as proxy:
        env = environment(proxy.endpoint) | {"AWS_MAX_ATTEMPTS": "3"}
        place = open_place(folder)
        with Forked(TRAIN, *arguments(digits, folder, "duration=100000ba"), ranks=2, env=env) as process:
            deadline = time.monotonic() + 100
            while not place.list("snapshots/"):
                assert process.poll() is None and time.monotonic() < deadline, process.output() + process.errors()
                time.sleep(0.1)
            proxy.refuse_all()
            assert process.wait(timeout=100) == 2
            text = process.output() + process.errors()
    assert "Traceback" not in text
    (message,) = {line for line in text.splitlines() if line.startswith("train.py: ")}
    assert proxy.endpoint in message and f"{folder}/" in message


def test_foreign_pickles_are_refused(two_ranks: Place, digits: Path, object_store: ObjectStore, tmp_path: Path):
    """A checkpoint whose `.metadata` would run a command: the run refuses it, and the command does not run."""
    source, target = two_ranks, open_place(f"s3://{object_store.bucket}/poisoned")
    newest = newest_whole(source.child("checkpoints"))
    assert newest is not None
    for entry in newest.files:
        target.write(f"checkpoints/{entry.name}", source.read(f"checkpoints/{entry.name}"))
    mark = tmp_path / "it-ran"

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {mark}",)

    target.write(f"checkpoints/{newest.name}/.metadata", pickle.dumps(Hostile()))
    done = run_forked(TRAIN, *arguments(digits, target.address), env=object_store.environment)
    assert_refused(done, target.address, "system", "nothing of it was run")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("overrides", "change", "mentions"),
    [
        ([], {"AWS_SECRET_ACCESS_KEY": "wrong-word"}, ["secret key does not belong to the access key"]),
        ([], {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "read-only-secret"}, ["do not permit"]),
        (["save_folder=s3://no-such-bucket/run"], {}, ["s3://no-such-bucket/run", "no such bucket"]),
        (["data.remote=s3://{bucket}/no-data"], {}, ["s3://{bucket}/no-data", "holds no index.json"]),
        (["init={{path: s3://{bucket}/no-run}}"], {}, ["s3://{bucket}/no-run", "holds no whole checkpoint"]),
    ],
    ids=["wrong key", "no write permission", "missing bucket", "missing data", "missing weights"],
)
def test_refusals_before_training(
    overrides: list[str],
    change: dict[str, str],
    mentions: list[str],
    digits: Path,
    object_store: ObjectStore,
    tmp_path: Path,
):
    named = [text.format(bucket=object_store.bucket) for text in overrides]
    if "data.remote" in "".join(named):
        named.append(f"data.local={tmp_path}")
    line = arguments(digits, f"s3://{object_store.bucket}/refused", *named)
    done = run_forked(TRAIN, *line, env=object_store.environment | change)
    assert_refused(done, *(text.format(bucket=object_store.bucket) for text in mentions))
    assert "wrong-word" not in done.stderr
    assert "batch=1" not in done.stderr


def test_an_expired_run(two_ranks: Place, digits: Path, object_store: ObjectStore):
    """Its checkpoints were deleted, perhaps by a rule of the bucket: it must not silently begin anew."""
    source, target = two_ranks, open_place(f"s3://{object_store.bucket}/expired")
    for entry in source.list():
        if not entry.name.startswith("checkpoints/"):
            target.write(entry.name, source.read(entry.name))
    done = run_forked(TRAIN, *arguments(digits, target.address), env=object_store.environment)
    assert_refused(done, target.address, "deleted or expired")
