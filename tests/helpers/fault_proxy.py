"""A proxy on loopback that spoils a share of the HTTP requests to a server, as real networks and object stores do.

The Host header is passed on as it came, so that signatures stay valid.
"""

import contextlib
import random
import select
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO
from urllib.parse import urlsplit

KINDS = ("unavailable", "reset", "slow", "cut_request", "cut_answer", "lost_answer")
"""503 SlowDown; connection reset before the request is passed on; late and in small pieces; half of the request's body
passed on; half of the answer's body passed on; request carried out, but the connection reset instead of an answer."""

BLOCK = 64 << 10
UNAVAILABLE = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"


@dataclass(frozen=True)
class Request:
    """What passed: `fault` is one of KINDS or None; `received` and `sent` are bytes of the two bodies."""

    method: str
    target: str
    fault: str | None
    received: int
    sent: int


class Gone(Exception):
    """One of the two sides closed its connection."""


class FaultProxy:
    """Passes on to `endpoint`, with a fault in `share` of the requests. Counters: `counts` by kind, `log` in full.

    Attributes that a test may change at any time: `share`, `kinds`, `delay` (seconds of a slow answer),
    `bytes_per_second` (of all bodies together, either way; None = no limit), and `hold`, a function of a request's
    method and target: requests for which it is true are never passed on, and the first of them sets `held`.
    """

    def __init__(self, endpoint: str, share: float = 0.1, seed: int = 0, kinds: Sequence[str] = KINDS):
        url = urlsplit(endpoint)
        self.upstream = (str(url.hostname), int(url.port or 80))
        self.share, self.kinds, self.delay = share, kinds, 0.3
        self.bytes_per_second: float | None = None
        self.hold: Callable[[str, str], bool] = lambda method, target: False
        self.held, self.gone = threading.Event(), threading.Event()
        self.counts: Counter[str] = Counter()
        self.log: list[Request] = []
        self._random = random.Random(seed)
        self._chosen: Counter[str] = Counter()
        self._forced: deque[str | None] = deque()
        self._lock = threading.Lock()
        self._free_at = 0.0
        self._open: set[socket.socket] = set()
        self._port = 0
        self._listener: socket.socket | None = None
        self.accept_all()
        self.endpoint = f"http://127.0.0.1:{self._port}"

    def force(self, *kinds: str | None) -> None:
        """Spoil the next requests in these ways, whatever `share` says; None lets one pass."""
        self._forced.extend(kinds)

    def refuse_all(self) -> None:
        """No network: cut all connections, refuse new ones."""
        self.gone.set()
        with self._lock:
            listener, self._listener = self._listener, None
            connections = list(self._open)
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            listener.close()
        for connection in connections:
            _reset(connection)

    def accept_all(self) -> None:
        """Listen, for the first time or again after `refuse_all`."""
        self.gone.clear()
        self._listener = listener = socket.create_server(("127.0.0.1", self._port), backlog=128)
        self._port = listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    close = refuse_all

    def __enter__(self) -> "FaultProxy":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    @property
    def sent(self) -> int:
        """Bytes of bodies that went to the client."""
        return sum(request.sent for request in list(self.log))

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                if listener is not self._listener:
                    return _reset(connection)
                self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection.makefile("rb") as reader:
                while Exchange(self, connection, reader).run():
                    pass
        except (OSError, ValueError, Gone):  # ValueError: the socket was closed by refuse_all
            pass
        finally:
            with self._lock:
                self._open.discard(connection)
            _reset(connection)

    def choose(self, has_body: bool) -> str | None:
        """The fault of the next request, None = it passes; over time all kinds come up equally often."""
        with self._lock:
            if self._forced:
                return self._forced.popleft()
            if self._random.random() >= self.share:
                return None
            # The rarest so far, not any: so every kind comes up, however few the requests.
            possible = [kind for kind in self.kinds if has_body or kind != "cut_request"]
            kind = min(possible, key=lambda kind: (self._chosen[kind], self._random.random()))
            self._chosen[kind] += 1
            return kind

    def record(self, request: Request) -> None:
        with self._lock:
            self.counts["requests"] += 1
            if request.fault:
                self.counts[request.fault] += 1
            self.log.append(request)

    def pace(self, count: int) -> None:
        """Wait until `count` further bytes are within `bytes_per_second`."""
        if self.bytes_per_second:
            with self._lock:
                self._free_at = max(self._free_at, time.monotonic()) + count / self.bytes_per_second
                wait = self._free_at - time.monotonic()
            time.sleep(max(0.0, wait))


class Exchange:
    """One request and its answer."""

    def __init__(self, proxy: FaultProxy, client: socket.socket, reader: IO[bytes]):
        self.proxy, self.client, self.reader = proxy, client, reader
        self.method, self.target, self.fault = "", "", None
        self.received = self.sent = 0

    def run(self) -> bool:
        """Pass it on; whether the connection stays open for another one."""
        first, headers = _read_head(self.reader)
        self.method, self.target, _ = first.decode("latin-1").split(" ", 2)
        if self.proxy.hold(self.method, self.target):
            self.proxy.held.set()
            self.proxy.gone.wait()
            raise Gone
        self.fault = self.proxy.choose(has_body=headers.get(b"content-length", b"0") != b"0")
        try:
            return self._run(first, headers)
        finally:
            self.proxy.record(Request(self.method, self.target, self.fault, self.received, self.sent))

    def _run(self, first: bytes, headers: dict[bytes, bytes]) -> bool:
        if self.fault == "reset":
            return False
        if headers.pop(b"expect", b"").lower() == b"100-continue":
            self.client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self.fault == "unavailable":
            for block in _body(self.reader, headers):
                self.received += len(block)
            head = b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: %d"
            self.client.sendall(head % len(UNAVAILABLE) + b"\r\n\r\n" + UNAVAILABLE)
            _close_gently(self.client)
            return False
        if self.fault == "slow":
            time.sleep(self.proxy.delay)
        with socket.create_connection(self.proxy.upstream) as server, server.makefile("rb") as answer:
            server.sendall(_head(first, headers))
            if not self._pass_request(server, headers):
                return False
            return self._pass_answer(answer)

    def _pass_request(self, server: socket.socket, headers: dict[bytes, bytes]) -> bool:
        length = int(headers.get(b"content-length", b"0"))
        for block in _body(self.reader, headers):
            self.proxy.pace(len(block))
            if self.fault == "cut_request" and self.received + len(block) > length // 2:
                server.sendall(block[: length // 2 - self.received])
                return False
            server.sendall(block)
            self.received += len(block)
        return True

    def _pass_answer(self, answer: IO[bytes]) -> bool:
        first, headers = _read_head(answer)
        while first.split(b" ")[1] == b"100":
            first, headers = _read_head(answer)
        if self.fault == "lost_answer":
            return False
        self.client.sendall(_head(first, headers))
        if self.method == "HEAD" or first.split(b" ")[1] in (b"204", b"304"):
            return self.fault != "cut_answer"
        length = int(headers.get(b"content-length", b"0"))
        for block in _body(answer, headers, until_close=True):
            self.proxy.pace(len(block))
            if self.fault == "cut_answer" and self.sent + len(block) > length // 2:
                self.client.sendall(block[: max(0, length // 2 - self.sent)])
                self.sent = max(self.sent, length // 2)
                _close_gently(self.client)
                return False
            self._send(block)
        open_ended = b"content-length" not in headers and b"transfer-encoding" not in headers
        return not open_ended and headers.get(b"connection", b"").lower() != b"close"

    def _send(self, block: bytes) -> None:
        pieces = 8 if self.fault == "slow" else 1
        size = max(1, -(-len(block) // pieces))
        for start in range(0, len(block), size):
            self.client.sendall(block[start : start + size])
            self.sent += len(block[start : start + size])
            if pieces > 1:
                time.sleep(self.proxy.delay / 20)


def _read_head(reader: IO[bytes]) -> tuple[bytes, dict[bytes, bytes]]:
    first = reader.readline()
    if not first.strip():
        raise Gone
    headers = {}
    while (line := reader.readline()).strip():
        name, _, value = line.partition(b":")
        headers[name.strip().lower()] = value.strip()
    if not line:
        raise Gone
    return first.strip(), headers


def _head(first: bytes, headers: dict[bytes, bytes]) -> bytes:
    return b"\r\n".join([first, *(name + b": " + value for name, value in headers.items()), b"", b""])


def _body(reader: IO[bytes], headers: dict[bytes, bytes], until_close: bool = False) -> Iterator[bytes]:
    """A body in blocks; chunked ones with their framing."""
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        while True:
            line = reader.readline()
            size = int(line.split(b";")[0], 16)
            yield line + _exactly(reader, size + 2)
            if size == 0:
                return
    left = int(headers[b"content-length"]) if b"content-length" in headers else (-1 if until_close else 0)
    while left:
        block = reader.read(BLOCK if left < 0 else min(BLOCK, left))
        if not block:
            if left > 0:
                raise Gone
            return
        left -= len(block) if left > 0 else 0
        yield block


def _exactly(reader: IO[bytes], count: int) -> bytes:
    data = reader.read(count)
    if len(data) != count:
        raise Gone
    return data


def _close_gently(connection: socket.socket) -> None:
    """Let what was sent arrive before the connection goes."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        select.select([connection], [], [], 2)


def _reset(connection: socket.socket) -> None:
    """Close at once; the other side sees "connection reset by peer"."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
