"""Folders, local and in a real S3 server, through one interface; then access, faults and lost servers."""

import http.server
import os
import pickle
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from helpers.commands import run
from helpers.fault_proxy import KINDS, FaultProxy
from helpers.object_store import KEYS, ObjectStore, environment
from recipe.storage import multipart, s3, s3_client, s3_errors
from recipe.storage.addresses import open_place, split_address
from recipe.storage.files import file_sha256
from recipe.storage.places import PROBE, AccessError, ChangedError, MissingError, Place, StorageError, is_inside

MIB = 2**20


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty folder of either kind."""
    if request.param == "local":
        return open_place(tmp_path / "folder")
    return open_place(request.getfixturevalue("bucket_folder"))


@pytest.fixture
def far(bucket_folder: str, fault_proxy: FaultProxy) -> Place:
    """A folder in the S3 server that this process reaches through `fault_proxy`."""
    return open_place(bucket_folder)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses between attempts, and parts of the least size that S3 allows."""
    monkeypatch.setattr(s3_client, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(s3, "MULTIPART_THRESHOLD", 5 * MIB)
    monkeypatch.setattr(multipart, "PART_SIZE", 5 * MIB)


def test_a_file_is_written_listed_and_read(place: Place):
    assert place.list() == []
    start = time.time()
    place.write("snapshots/b", b"0123456789")
    place.write("snapshots/a", b"")
    place.write("snapshots-of-another", b"x")
    place.write("config.yaml", b"seed: 0\n")
    entries = place.list()
    assert [(entry.name, entry.size) for entry in entries] == [
        ("config.yaml", 8),
        ("snapshots-of-another", 1),
        ("snapshots/a", 0),
        ("snapshots/b", 10),
    ]
    assert all(start - 5 < entry.modified < time.time() + 5 for entry in entries)
    assert [entry.name for entry in place.list("snapshots/")] == ["snapshots/a", "snapshots/b"]
    assert [entry.name for entry in place.list("snapshots/b")] == ["snapshots/b"]
    assert place.list("nothing/") == []
    assert (place.size("snapshots/b"), place.size("snapshots/a"), place.size("snapshots/c")) == (10, 0, None)
    assert place.size("snapshots") is None
    assert place.read("snapshots/b") == b"0123456789"
    assert place.read("snapshots/a") == b""
    place.write("snapshots/b", b"new")
    assert place.read("snapshots/b") == b"new"


def test_ranges(place: Place):
    place.write("file", b"0123456789")
    assert place.read("file", 3, 4) == b"3456"
    assert place.read("file", 8) == b"89"
    assert place.read("file", 10) == b""
    assert place.read("file", 4, 0) == b""
    assert place.read("file", 0, 10) == b"0123456789"
    for start, length in ((8, 3), (10, 1), (20, 1), (20, None)):
        with pytest.raises(StorageError, match="ends") as caught:
            place.read("file", start, length)
        assert f"{place.address}/file" in str(caught.value)


def test_missing_files(place: Place):
    for read in (lambda: place.read("file"), lambda: place.read("folder/file", 3, 4)):
        with pytest.raises(MissingError, match="check the") as caught:
            read()
        assert place.address in str(caught.value)
    assert place.info("file") is None
    assert place.sha256("file") is None
    assert place.read_versioned("file") is None
    place.delete(["file", "folder/file"])


def test_a_version_that_is_gone(place: Place):
    place.write("file", b"one")
    info = place.info("file")
    assert info is not None
    assert place.read("file", 1, 2, info.version) == b"ne"
    place.write("file", b"other")
    with pytest.raises(ChangedError, match="has changed"):
        place.read("file", 1, 2, info.version)


def test_names_stay_inside(place: Place):
    for name in ("../file", "a/../../file", "/etc/passwd", "a//b", "", "a/./b", "a\\b", "a\0b"):
        assert not is_inside(name)
        for use in (place.read, place.size, lambda name: place.write(name, b""), lambda name: place.delete([name])):
            with pytest.raises(StorageError, match="is not the name of a file"):
                use(name)
    for name in ("a/..b", "a/b..", ".hidden", "a b", "\N{SNOWMAN}/a+b=c&d?e#f%20"):
        place.write(name, name.encode())
        assert place.read(name) == name.encode()
        assert name in [entry.name for entry in place.list()]


def test_temporary_files_are_not_listed(place: Place):
    place.write(".tmp-one", b"x")
    place.write("folder/.tmp-two", b"x")
    place.write(".tmp-folder/three", b"x")
    place.write("four", b"x")
    assert [entry.name for entry in place.list()] == ["four"]


def test_long_listings(place: Place):
    """More names than an S3 server lists at once."""
    names = [f"folder/{index:04d}" for index in range(1010)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: place.write(name, b""), names))
    assert [entry.name for entry in place.list()] == names
    place.delete(names[:-1])
    assert [entry.name for entry in place.list()] == names[-1:]


def test_new_files_are_new(place: Place):
    assert place.write_new("file", b"first")
    assert not place.write_new("file", b"second")
    assert place.read("file") == b"first"


def test_one_of_many_writers_wins(place: Place):
    def race(write: Callable[[int], bool], count: int = 8) -> list[int]:
        barrier = threading.Barrier(count)

        def start(index: int) -> bool:
            barrier.wait()
            return write(index)

        with ThreadPoolExecutor(count) as pool:
            return [index for index, won in enumerate(pool.map(start, range(count))) if won]

    (winner,) = race(lambda index: place.write_new("file", b"%d" % index))
    assert place.read("file") == b"%d" % winner
    found = place.read_versioned("file")
    assert found is not None
    (winner,) = race(lambda index: place.replace("file", b"new %d" % index, found[1]))
    assert place.read("file") == b"new %d" % winner


def test_replaced_only_if_unchanged(place: Place):
    place.write("file", b"one")
    found = place.read_versioned("file")
    assert found is not None
    data, version, modified, now = found
    assert data == b"one"
    assert abs(now - time.time()) < 5 and -2 < now - modified < 5
    assert place.replace("file", b"two", version)
    assert not place.replace("file", b"three", version)
    assert place.read("file") == b"two"
    assert not place.replace("missing", b"", version)
    assert place.size("missing") is None


def test_uploads(place: Place, tmp_path: Path, quick: None):
    for size in (0, 1000, 5 * MIB - 1, 5 * MIB, 12 * MIB + 1):
        path = tmp_path / "source"
        path.write_bytes(os.urandom(size))
        place.upload("folder/file", path)
        assert place.read("folder/file") == path.read_bytes()
        assert place.sha256("folder/file") == (None if place.is_local else file_sha256(path))
    with pytest.raises(MissingError, match="no such file"):
        place.upload("folder/other", tmp_path / "nowhere")
    assert [entry.name for entry in place.list()] == ["folder/file"]


def test_children_and_pickles(place: Place):
    child = place.child("a/b")
    child.write("c", b"x")
    assert place.read("a/b/c") == b"x"
    assert child.address == f"{place.address}/a/b"
    assert pickle.loads(pickle.dumps(child)).read("c") == b"x"
    folder, name = split_address(f"{child.address}/c")
    assert (folder.address, name) == (child.address, "c")


def test_access(place: Place):
    place.check_access()
    assert place.list() == []
    place.check_access(write=False)


def test_addresses():
    for text in ("s3://bucket/a/b", "s3://bucket/a/b/", Path("s3://bucket/a/b")):
        assert open_place(text).address == "s3://bucket/a/b"
    assert open_place("s3://bucket").address == open_place("s3://bucket/").address == "s3://bucket"
    assert open_place("runs/edm2").is_local
    for text in ("gs://bucket/a", "s3://", "s3:///a", "https://host/a", "file:///tmp"):
        with pytest.raises(StorageError, match="give a local path or s3://bucket/prefix"):
            open_place(text)
    with pytest.raises(StorageError, match="is not the address of a file"):
        split_address("s3://bucket")


def test_local_replacements_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = open_place(tmp_path)
    place.write("file", b"old")
    found = place.read_versioned("file")
    assert found is not None

    def slowly(name: str, read: Callable = place.read_versioned) -> object:
        result = read(name)
        time.sleep(0.05)
        return result

    monkeypatch.setattr(place, "read_versioned", slowly)
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(lambda index: place.replace("file", b"%d" % index, found[1]), range(4))) == 1


def test_local_failures_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = open_place(tmp_path)
    place.write("file", b"old")

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    for write in (place.write, place.write_new, lambda name, data: place.replace(name, data, "")):
        with pytest.raises(StorageError, match="No space left on device"):
            write("file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert place.read("file") == b"old"


def test_local_folder_that_is_a_file(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="check the path"):
        open_place(tmp_path / "file").check_access()
    with pytest.raises(StorageError, match="check the path"):
        open_place(tmp_path / "file" / "folder").write("name", b"")
    with pytest.raises(MissingError, match="no such file or folder"):
        open_place(tmp_path / "nowhere").check_access(write=False)


def refused(address: str, settings: dict[str, str], patch: pytest.MonkeyPatch, kind: type[StorageError]) -> str:
    """The message of check_access with these variables: one line, without any secret."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        patch.delenv(name, raising=False)
    for name, value in settings.items():
        patch.setenv(name, value)
    with pytest.raises(kind) as caught:
        open_place(address).check_access()
    message = str(caught.value)
    assert type(caught.value) is kind
    assert len(message.splitlines()) == 1
    assert f"{address}" in message and settings["S3_ENDPOINT_URL"] in message
    assert not [secret for secret in (*KEYS.values(), "wrong-word", "a-token") if secret in message]
    return message


def test_who_may_not_write(object_store: ObjectStore, bucket_folder: str, monkeypatch: pytest.MonkeyPatch):
    def said(settings: dict[str, str]) -> str:
        return refused(bucket_folder, settings, monkeypatch, AccessError)

    endpoint = object_store.endpoint
    assert "secret key does not belong" in said(environment(endpoint, secret_key="wrong-word"))
    assert "does not know the access key" in said(environment(endpoint, "nobody", "wrong-word"))
    message = said(object_store.read_only_environment)
    assert "do not permit" in message and f"{bucket_folder}/{PROBE}" in message
    monkeypatch.setenv("HOME", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    none = {name: value for name, value in environment(endpoint).items() if "KEY" not in name}
    assert "there are no credentials" in said(none)
    open_place(bucket_folder)  # opening alone asks for nothing
    for name, value in object_store.read_only_environment.items():
        monkeypatch.setenv(name, value)
    open_place(bucket_folder).check_access(write=False)


def test_missing_bucket(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch):
    settings = object_store.environment
    assert "no such bucket" in refused("s3://no-such-bucket/run", settings, monkeypatch, MissingError)
    with pytest.raises(MissingError, match="no such bucket"):
        open_place("s3://no-such-bucket/run").read_versioned("owner.json")


def test_a_server_that_never_answered_is_given_up_within_seconds(
    object_store: ObjectStore, bucket_folder: str, monkeypatch: pytest.MonkeyPatch
):
    """A wrong address must be known soon after a start; what has answered before is waited for."""
    proxy = FaultProxy(object_store.endpoint, share=0)
    proxy.refuse_all()
    monkeypatch.delenv("AWS_MAX_ATTEMPTS", raising=False)
    monkeypatch.setattr(s3_client, "FIRST_PATIENCE", 1.0)
    monkeypatch.setattr(s3_client, "_has_answered", False)
    message = refused(bucket_folder, environment(proxy.endpoint), monkeypatch, StorageError)
    assert re.search(r"no connection, [34] attempts", message) and "S3_ENDPOINT_URL" in message
    proxy.accept_all()
    with pytest.raises(MissingError):
        open_place(bucket_folder).read("nothing")
    assert s3_client._has_answered  # even with an error


def test_dead_endpoint_is_given_up(
    object_store: ObjectStore, bucket_folder: str, monkeypatch: pytest.MonkeyPatch, quick: None
):
    proxy = FaultProxy(object_store.endpoint)
    proxy.refuse_all()
    settings = environment(proxy.endpoint) | {"AWS_MAX_ATTEMPTS": "3"}
    message = refused(bucket_folder, settings, monkeypatch, StorageError)
    assert "no connection, 3 attempts" in message and "S3_ENDPOINT_URL" in message
    with pytest.raises(StorageError) as caught:
        open_place(bucket_folder).read("folder/file")
    assert f"{bucket_folder}/folder/file at {proxy.endpoint}" in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [("AWS_MAX_ATTEMPTS", "many"), ("S3_ENDPOINT_URL", "localhost:9000")])
def test_settings_that_make_no_sense(name: str, value: str, bucket_folder: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(StorageError) as caught:
        open_place(bucket_folder).list()
    assert name in str(caught.value) and value in str(caught.value)


class Answer(http.server.BaseHTTPRequestHandler):
    """Says the same to everybody: `server.status` with the S3 error `server.code`."""

    def do_GET(self) -> None:
        self.server.asked += 1  # pyright: ignore
        body = f"<?xml version='1.0'?><Error><Code>{self.server.code}</Code></Error>".encode()  # pyright: ignore
        self.send_response(self.server.status)  # pyright: ignore
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, str], http.server.HTTPServer]]:
    """A server of canned answers, which the environment names."""
    servers = []

    def answer(status: int, code: str) -> http.server.HTTPServer:
        server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
        server.status, server.code, server.asked = status, code, 0  # pyright: ignore
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        settings = environment(f"http://127.0.0.1:{server.server_port}") | {"AWS_SESSION_TOKEN": "a-token"}
        for name, value in (settings | {"AWS_MAX_ATTEMPTS": "3"}).items():
            monkeypatch.setenv(name, value)
        servers.append(server)
        return server

    yield answer
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "kind", "asked", "said"),
    [
        (400, "ExpiredToken", AccessError, 1, "the session token has expired (ExpiredToken); get new credentials"),
        (403, "RequestTimeTooSkewed", AccessError, 1, "the clock of this machine is wrong"),
        (403, "AccessDenied", AccessError, 1, "the credentials do not permit this"),
        (400, "InvalidArgument", StorageError, 1, "answer 400 InvalidArgument"),
        (400, "RequestTimeout", StorageError, 3, "answer 400 RequestTimeout, 3 attempts"),
        (429, "TooManyRequests", StorageError, 3, "answer 429 TooManyRequests, 3 attempts"),
        (503, "SlowDown", StorageError, 3, "answer 503 SlowDown, 3 attempts"),
        (501, "NotImplemented", StorageError, 1, "answer 501 NotImplemented"),
    ],
)
def test_what_is_tried_again(
    status: int,
    code: str,
    kind: type[StorageError],
    asked: int,
    said: str,
    answering: Callable[[int, str], http.server.HTTPServer],
    quick: None,
):
    server = answering(status, code)
    with pytest.raises(kind) as caught:
        open_place("s3://bucket/run").check_access()
    assert said in str(caught.value) and "a-token" not in str(caught.value)
    assert server.asked == asked  # pyright: ignore


@pytest.mark.parametrize("fault", KINDS)
def test_each_operation_survives_each_fault(fault: str, fault_proxy: FaultProxy, far: Place, quick: None):
    """Every operation meets the fault twice in a row; conditional ones still tell their own write from another's."""
    place = far
    fault_proxy.delay = 0.01

    def spoiled(action: Callable[[], object]) -> object:
        fault_proxy.force(fault, fault)
        return action()

    data = os.urandom(300_000)
    spoiled(lambda: place.write("file", data))
    assert spoiled(lambda: place.read("file")) == data
    assert spoiled(lambda: place.read("file", 1000, 200_000)) == data[1000:201_000]
    assert spoiled(lambda: place.size("file")) == len(data)
    assert spoiled(lambda: place.write_new("new", b"mine")) is True
    assert spoiled(lambda: place.write_new("new", b"mine")) is False
    found = spoiled(lambda: place.read_versioned("new"))
    assert isinstance(found, tuple)
    assert spoiled(lambda: place.replace("new", b"next", found[1])) is True
    assert spoiled(lambda: place.replace("new", b"next", found[1])) is False
    assert spoiled(lambda: [entry.name for entry in place.list()]) == ["file", "new"]
    spoiled(lambda: place.delete(["new"]))
    assert [entry.name for entry in place.list()] == ["file"]
    assert fault_proxy.counts[fault] >= 11  # a slow one is no failure, and only a request with a body can be cut


@pytest.mark.parametrize("fault", KINDS)
@pytest.mark.parametrize("step", ["start", "parts", "end"])
def test_uploads_in_parts_survive_each_fault(
    step: str, fault: str, fault_proxy: FaultProxy, far: Place, tmp_path: Path, quick: None
):
    path = tmp_path / "source"
    path.write_bytes(os.urandom(11 * MIB))
    fault_proxy.delay = 0.01
    fault_proxy.force(*[None] * {"start": 0, "parts": 1, "end": 4}[step], fault)
    far.upload("file", path)
    assert far.read("file") == path.read_bytes()
    assert far.sha256("file") == file_sha256(path)
    assert fault_proxy.counts[fault] == 1


def test_failed_upload_leaves_nothing(
    fault_proxy: FaultProxy, far: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    path = tmp_path / "source"
    path.write_bytes(bytes(11 * MIB))
    fault_proxy.force(None, *["unavailable"] * 3)
    with pytest.raises(StorageError, match=r"file at .*: cannot be written \(answer 503 SlowDown, 1 attempts\)"):
        far.upload("file", path)
    assert far.list() == []
    bucket, prefix = far.address.removeprefix("s3://").split("/")
    assert not s3_client.client().list_multipart_uploads(Bucket=bucket, Prefix=prefix).get("Uploads")


def test_end_of_an_upload_that_was_carried_out_before(monkeypatch: pytest.MonkeyPatch):
    """Some servers forget an upload once it is complete; after a lost answer the object tells whether it was ours."""

    class Client:
        def complete_multipart_upload(self, **options: object) -> None:
            response = {"Error": {"Code": "NoSuchUpload"}, "ResponseMetadata": {"HTTPStatusCode": 404}}
            raise ClientError(response, "CompleteMultipartUpload")  # pyright: ignore

        def head_object(self, **options: object) -> dict:
            return {"Metadata": {"sha256": "ours"}}

    monkeypatch.setattr(s3_client, "client", Client)
    multipart._complete("s3://bucket/file", {}, {}, [], {"sha256": "ours"})
    with pytest.raises(MissingError):
        multipart._complete("s3://bucket/file", {}, {}, [], {"sha256": "another's"})


def test_other_bytes_than_sent_are_noticed():
    multipart.check_stored({"ETag": '"0cc175b9c0f1b6a831c399e269772661"'}, "0cc175b9c0f1b6a831c399e269772661")
    multipart.check_stored({"ETag": '"0cc175b9c0f1b6a831c399e269772661-2"'}, "")
    multipart.check_stored({"ETag": '"' + "0" * 32 + '"', "ServerSideEncryption": "aws:kms"}, "1" * 32)
    with pytest.raises(s3_errors.TransferCutError):
        multipart.check_stored({"ETag": '"' + "0" * 32 + '"'}, "1" * 32)


def test_a_tenth_of_the_requests_fails(fault_proxy: FaultProxy, far: Place, tmp_path: Path, quick: None):
    fault_proxy.share, fault_proxy.delay = 0.1, 0.05
    contents = {f"folder/{index:03d}": os.urandom(1000 * (index + 1)) for index in range(120)}
    large = tmp_path / "large"
    large.write_bytes(os.urandom(23 * MIB))

    def work(name: str) -> None:
        data = contents[name]
        if int(name[-3:]) % 3 == 0:
            (tmp_path / name[-3:]).write_bytes(data)
            far.upload(name, tmp_path / name[-3:])
        elif int(name[-3:]) % 3 == 1:
            far.write(name, data)
        else:
            assert far.write_new(name, data)
        assert far.read(name) == data
        assert far.read(name, 100, 900) == data[100:1000]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, contents))
    far.upload("large", large)
    assert b"".join(far.read("large", start, MIB) for start in range(0, 23 * MIB, MIB)) == large.read_bytes()
    sizes = {entry.name: entry.size for entry in far.list("folder/")}
    assert sizes == {name: len(data) for name, data in contents.items()}
    assert fault_proxy.counts["requests"] > 400
    assert all(fault_proxy.counts[kind] > 0 for kind in KINDS), fault_proxy.counts


def test_server_is_killed_and_comes_back(object_store: ObjectStore, bucket_folder: str):
    place = open_place(bucket_folder)
    place.write("before", b"kept")
    object_store.kill()
    back = threading.Timer(1.5, object_store.start)
    back.start()
    try:
        started = time.monotonic()
        assert place.read("before") == b"kept"
        place.write("after", b"new")
        assert time.monotonic() - started > 1.4
    finally:
        back.join()
    assert [entry.name for entry in place.list()] == ["after", "before"]


FORKS = """
import multiprocessing, sys
from recipe.storage import s3_client
from recipe.storage.addresses import open_place

def known_clients():
    return len(s3_client._clients)

place = open_place(sys.argv[1])
place.write("file", bytes(100_000))
with s3_client._lock:
    pool = multiprocessing.get_context("fork").Pool(2)
with pool:
    assert pool.apply_async(known_clients).get(20) == 0
    read = pool.map_async(place.read, ["file"] * 20)
    assert [place.read("file") for _ in range(20)] == read.get(20)
"""


def test_a_forked_process_has_its_own_connections(bucket_folder: str):
    """Even if another thread was just making a client: the child neither shares a socket nor waits for that thread.

    In a process of its own, for this one has threads of libraries, which a fork would leave behind in any state.
    """
    done = run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKS, bucket_folder], timeout=60)
    assert done.returncode == 0, done.stderr
