"""One boto3 client per process, and the one retry loop around its calls.

Credentials come by boto3's own chain (environment, profile, role) and appear in no message; when the server refuses
them, they are looked for anew, because a file or a process may have others by now. The endpoint is S3_ENDPOINT_URL, as
for Composer and streaming, else boto3's own. AWS_MAX_ATTEMPTS bounds the attempts (default 10, and fewer to reach a
server that has never answered).
"""

import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import boto3
import botocore.exceptions as boto
from botocore.config import Config

from recipe.storage.places import StorageError
from recipe.storage.s3_errors import (
    CONNECT_TIMEOUT,
    FAILURES,
    READ_TIMEOUT,
    UNREACHED,
    explained,
    is_expired,
    is_refused,
    is_transient,
    reason,
)

T = TypeVar("T")
FIRST_DELAY = 0.25  # seconds before the second attempt, doubled for each further one
LONGEST_DELAY = 15.0
MOST_RENEWALS = 3  # of the keys, for one call
FIRST_PATIENCE = 8.0  # seconds of attempts to reach a server that has never answered: it is rather a wrong address
CONNECTIONS = 32
ENDPOINTS = ("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_lock = threading.Lock()
_has_answered = False  # whether any server ever did, whatever it said; forked processes know it from their parent


@dataclass
class _Connection:
    """A client, the session that knows its keys, and whether the server has taken them."""

    session: boto3.Session
    client: Any
    worked: bool = False

    def keys(self) -> Any:
        """The keys in use, which boto3 renews by itself if it knows when they expire; None without any."""
        found = self.session.get_credentials()
        return None if found is None else found.get_frozen_credentials()


_clients: dict[tuple[tuple[str, str], ...], _Connection] = {}


def client() -> Any:
    """The S3 client of this process for the present settings in the environment. Raises StorageError."""
    return _connection().client


def _connection() -> _Connection:
    settings = tuple(sorted(item for item in os.environ.items() if item[0].startswith(("AWS_", "S3_ENDPOINT"))))
    with _lock:
        if settings not in _clients:
            _clients[settings] = _connect()
        return _clients[settings]


def _connect() -> _Connection:
    endpoint = next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), None)
    config = Config(
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        max_pool_connections=CONNECTIONS,
        s3={"addressing_style": "path" if endpoint else "auto"},
        # Content-MD5, which we send, is understood by every server; the newer default, CRC trailers, is not.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        session = boto3.Session()
        return _Connection(session, session.client("s3", config=config, endpoint_url=endpoint))
    except (ValueError, boto.BotoCoreError) as error:
        where = f"endpoint {_without_password(endpoint)}" if endpoint else "S3"
        raise StorageError(
            f"{where}: no client can be made ({reason(error)}); check S3_ENDPOINT_URL, which is like "
            "https://host:port, and the AWS_... settings"
        ) from None


def _renewed(used: _Connection) -> bool:
    """Whether there are other keys by now than those of a connection; then the next call takes them."""
    with _lock:
        settings = next((key for key, connection in _clients.items() if connection is used), None)
        if settings is None:
            return True  # another thread has found them
        try:
            fresh = _connect()
            if fresh.keys() == used.keys():
                return False
        except (boto.BotoCoreError, StorageError, ValueError):  # no keys can be had right now
            return False
        _clients[settings] = fresh
        return True


def _forget_after_fork() -> None:
    """A child must not use its parent's connections, nor a lock that another thread of the parent held."""
    global _lock
    _lock = threading.Lock()
    _clients.clear()


os.register_at_fork(after_in_child=_forget_after_fork)


def endpoint() -> str:
    """Where requests go, without user and password."""
    return _without_password(client().meta.endpoint_url)


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def attempts_allowed() -> int:
    """AWS_MAX_ATTEMPTS or 10. Raises StorageError for anything but a whole number above 0."""
    text = os.environ.get("AWS_MAX_ATTEMPTS") or "10"
    if not text.isdecimal() or int(text) < 1:
        raise StorageError(f"AWS_MAX_ATTEMPTS={text}: must be a whole number from 1 on")
    return int(text)


def call(where: str, what: str, action: Callable[[Any], T]) -> T:
    """The result of `action(client)`, tried again with growing pauses while the failure may be a passing one.

    Args:
        where: what is worked on, for messages, as `Place.describe` gives it.
        what: for messages, "be read" and the like.
        action: called once per attempt; must be safe to repeat.

    Raises:
        AccessError, ExpiredKeysError, MissingError, ChangedError, StorageError: as the server's last answer says.
    """
    global _has_answered
    allowed, attempt, renewals, began = attempts_allowed(), 1, 0, time.monotonic()
    while True:
        connection = _connection()
        try:
            result = action(client())
            connection.worked = _has_answered = True
            return result
        except FAILURES as error:
            _has_answered |= isinstance(error, boto.ClientError)
            if renewals < MOST_RENEWALS and is_refused(error) and _renewed(connection):
                renewals += 1
                continue
            expired = connection.worked and is_expired(error)  # who renews them may be late
            if (
                attempt == allowed
                or not (expired or is_transient(error))
                or _is_nowhere(error, time.monotonic() - began)
            ):
                raise explained(f"{where}: cannot {what}", error, attempt, expired) from None
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(attempt - 1, 10))
        time.sleep(delay * random.uniform(0.5, 1))
        attempt += 1


def _is_nowhere(error: Exception, seconds: float) -> bool:
    """Whether there is no server at the address, for all that is known after so many seconds.

    A run must know it soon after its start; AWS_MAX_ATTEMPTS asks for more patience.
    """
    patient = _has_answered or "AWS_MAX_ATTEMPTS" in os.environ
    return isinstance(error, UNREACHED) and not patient and seconds > FIRST_PATIENCE
