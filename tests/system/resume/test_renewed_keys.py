"""Runs whose keys of S3 expire: data, checkpoints and curves go on with new ones, or the run is to be started again."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.commands import TRAIN, train_arguments
from helpers.expiring_keys import ExpiringKeys
from helpers.forks import Forked
from helpers.object_store import ObjectStore
from recipe.preparation.pipeline import prepare
from recipe.storage.addresses import open_place
from recipe.training.run import EXIT_PREEMPTED

pytestmark = pytest.mark.slow


@pytest.fixture
def proxy(object_store: ObjectStore, tmp_path: Path) -> Iterator[ExpiringKeys]:
    proxy = ExpiringKeys(object_store.endpoint, tmp_path)
    yield proxy
    proxy.close()


def wait_for_upload(proxy: ExpiringKeys, part: str) -> None:
    deadline = time.monotonic() + 120
    while not any(method == "PUT" and part in path for _, method, path in list(proxy.used)):
        assert time.monotonic() < deadline, proxy.used[-20:]
        time.sleep(0.05)


@pytest.mark.parametrize("renewed", [True, False])
def test_keys_expire_in_a_run(renewed: bool, proxy: ExpiringKeys, bucket_folder: str, digits: Path, tmp_path: Path):
    """Without new keys the data are local: those that have to be fetched would be tried for minutes more."""
    data, overrides = digits, []
    if renewed:  # small shards, so that the run fetches some of them late
        prepare("digits", tmp_path / "shards", resolution=8, encoding="png", shard_size="60kb")
        place = open_place(f"{bucket_folder}/data")
        for path in (tmp_path / "shards").iterdir():
            place.upload(path.name, path)
        data, overrides = tmp_path / "cache", [f"data.remote={bucket_folder}/data"]
    overrides += [f"save_folder={bucket_folder}/run", f"scratch_folder={tmp_path / 'scratch'}", "duration=200ba"]
    with Forked(TRAIN, *train_arguments(data, tmp_path, *overrides), env=proxy.environment, timeout=300) as run:
        wait_for_upload(proxy, "checkpoints/")
        if renewed:
            proxy.write("renewed")
        seen = len(proxy.used)
        proxy.expired.add("admin")
        status = run.wait()
        said = run.output() + run.errors()
    assert status == (0 if renewed else EXIT_PREEMPTED), said[-3000:]
    assert "Traceback" not in said
    if renewed:
        fetched = {path for key, _, path in proxy.used[seen:] if key == "renewed" and "shard" in path}
        assert fetched, "every shard was there before the keys expired: the test shows nothing of the data"
    else:
        assert "the credentials have expired" in said and "renew them" in said
