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


@pytest.fixture
def stored_digits(bucket_folder: str, tmp_path: Path) -> list[str]:
    """Overrides for digits in S3, in shards so small that a run fetches some of them late."""
    prepare("digits", tmp_path / "shards", resolution=8, encoding="png", shard_size="60kb")
    place = open_place(f"{bucket_folder}/data")
    for path in (tmp_path / "shards").iterdir():
        place.upload(path.name, path)
    return [f"data.remote={bucket_folder}/data", "duration=200ba"]


@pytest.mark.parametrize("renewed", [True, False])
def test_keys_expire_in_a_run(
    renewed: bool, proxy: ExpiringKeys, stored_digits: list[str], bucket_folder: str, tmp_path: Path
):
    overrides = [*stored_digits, f"save_folder={bucket_folder}/run", f"scratch_folder={tmp_path / 'scratch'}"]
    line = train_arguments(tmp_path / "cache", tmp_path, *overrides)
    with Forked(TRAIN, *line, env=proxy.environment, timeout=300) as run:
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


def test_shards_that_cannot_be_fetched_any_more(proxy: ExpiringKeys, stored_digits: list[str], tmp_path: Path):
    """Only they are in S3. The run says that it tries again, and ends soon; with new keys it goes on."""
    line = train_arguments(tmp_path / "cache", tmp_path / "run", *stored_digits)
    with Forked(TRAIN, *line, env=proxy.environment, timeout=300) as run:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "run").glob("checkpoints/*")):
            assert time.monotonic() < deadline and run.poll() is None, run.errors()
            time.sleep(0.05)
        proxy.expired.add("admin")
        begin = time.monotonic()
        assert run.wait() == EXIT_PREEMPTED, run.output() + run.errors()
        assert time.monotonic() - begin < 60
        said = run.output() + run.errors()
    assert "not fetched (" in said and "try 2 begins in" in said
    assert "the credentials have expired" in said and "renew them" in said and "Traceback" not in said
    proxy.write("renewed")
    with Forked(TRAIN, *line, env=proxy.environment, timeout=300) as run:
        assert run.wait() == 0, run.errors()
        assert "trained to 3200 images" in run.output()
