"""A proxy before an S3 server that lets a key expire, and AWS's file with the keys that a process finds."""

import http.client
import http.server
import threading
from pathlib import Path
from urllib.parse import urlsplit

from helpers.object_store import KEYS, environment

EXPIRED = (
    b"<?xml version='1.0'?><Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
)
HOP = ("transfer-encoding", "connection", "content-length")


class ExpiringKeys(http.server.ThreadingHTTPServer):
    """Passes on to `endpoint` what is not signed by a key of `expired`; `used` notes the key of each request."""

    daemon_threads = True

    def __init__(self, endpoint: str, folder: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(endpoint).netloc
        self.file = folder / "credentials"
        self.expired: set[str] = set()
        self.used: list[tuple[str, str, str]] = []  # key, method, path
        self.write("admin")
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which a command reaches the server, and finds its keys in the file."""
        found = environment(f"http://127.0.0.1:{self.server_port}")
        secret = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "")
        return found | secret | {"AWS_SHARED_CREDENTIALS_FILE": str(self.file), "AWS_MAX_ATTEMPTS": "3"}

    def write(self, key: str) -> None:
        """Put a key into the file."""
        self.file.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {KEYS[key]}\n")

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, ExpiringKeys)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        key = (self.headers.get("Authorization") or "").partition("Credential=")[2].partition("/")[0]
        server.used.append((key, self.command, self.path))
        if key in server.expired:
            self._answer(400, {"Content-Type": "application/xml"}, EXPIRED)
            return
        connection = http.client.HTTPConnection(server.upstream, timeout=60)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("expect", "connection"):
                connection.putheader(name, value)
        connection.endheaders(body or None)
        found = connection.getresponse()
        data = found.read()
        headers = {name: value for name, value in found.getheaders() if name.lower() not in HOP}
        self._answer(found.status, headers, data, found.getheader("Content-Length"))
        connection.close()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _answer(self, status: int, headers: dict[str, str], body: bytes, length: str | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(body) if self.command != "HEAD" else 0))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
