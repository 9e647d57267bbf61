"""Keys of S3 that expire while a process works: their successors are found in AWS's file, or come from a process."""

import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipe.storage import s3_client
from recipe.storage.addresses import open_place
from recipe.storage.places import AccessError, ExpiredKeysError


class Server(http.server.ThreadingHTTPServer):
    """Knows one key at a time and refuses all others, HEAD without a word, as S3 does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.key, self.code = "first", "ExpiredToken"
        self.asked: list[str] = []


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        key = self.headers["Authorization"].partition("Credential=")[2].partition("/")[0]
        server.asked.append(key)
        if key == server.key:
            status, body = 200, b"content"
        else:
            status, body = 400, f"<Error><Code>{server.code}</Code><Message>no</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """Reached by this process, with keys from a file and short pauses."""
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("S3_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    monkeypatch.setattr(s3_client, "FIRST_DELAY", 0.01)
    write_keys(tmp_path, "first")
    yield server
    server.shutdown()
    server.server_close()


def write_keys(folder: Path, key: str) -> None:
    (folder / "credentials").write_text(
        f"[default]\naws_access_key_id = {key}\naws_secret_access_key = s\naws_session_token = t\n"
    )


def read() -> bytes:
    return open_place("s3://bucket/run").read("file")


@pytest.mark.parametrize("code", ["ExpiredToken", "ExpiredTokenException", "InvalidToken", "RequestExpired"])
def test_new_keys_in_the_file_are_taken(code: str, server: Server, tmp_path: Path):
    assert read() == b"content"
    server.key, server.code = "second", code
    write_keys(tmp_path, "second")
    assert read() == b"content" and read() == b"content"
    assert server.asked == ["first", "first", "second", "second"]


def test_an_answer_without_a_name(server: Server, tmp_path: Path):
    place = open_place("s3://bucket/run")
    assert place.size("file") == 7
    server.key = "second"
    write_keys(tmp_path, "second")
    assert place.size("file") == 7


def test_one_attempt_is_enough(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert read() == b"content"
    server.key = "second"
    write_keys(tmp_path, "second")
    assert read() == b"content"


def test_keys_of_a_process(server: Server, tmp_path: Path):
    """`credential_process` without a time of expiry, so that boto3 asks it once."""
    (tmp_path / "credentials").write_text("")
    (tmp_path / "key").write_text('{"Version": 1, "AccessKeyId": "first", "SecretAccessKey": "s"}')
    (tmp_path / "config").write_text(f"[default]\ncredential_process = cat {tmp_path / 'key'}\n")
    assert read() == b"content"
    server.key = "second"
    (tmp_path / "key").write_text('{"Version": 1, "AccessKeyId": "second", "SecretAccessKey": "s"}')
    assert read() == b"content"
    (tmp_path / "key").write_text("broken")
    server.key = "third"
    with pytest.raises(ExpiredKeysError):
        read()


def test_a_renewal_may_be_late(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "10")
    assert read() == b"content"
    server.key = "second"
    threading.Timer(0.5, write_keys, (tmp_path, "second")).start()
    begin = time.monotonic()
    assert read() == b"content"
    assert time.monotonic() - begin > 0.4


def test_without_a_renewal_the_words_say_so(server: Server):
    assert read() == b"content"
    server.key = "second"
    with pytest.raises(ExpiredKeysError, match=r"credentials have expired .*ExpiredToken, 3 attempts.*renew them"):
        read()
    assert not ExpiredKeysError.again  # only a run that has begun is started again


def test_keys_that_never_were_good_are_refused_at_once(server: Server, tmp_path: Path):
    server.key = "second"
    with pytest.raises(AccessError, match="the session token has expired") as caught:
        read()
    assert not isinstance(caught.value, ExpiredKeysError) and len(server.asked) == 1


def test_threads_that_all_find_the_keys_expired(server: Server, tmp_path: Path):
    assert read() == b"content"
    server.key = "second"
    write_keys(tmp_path, "second")
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(read())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"content"] * 8
