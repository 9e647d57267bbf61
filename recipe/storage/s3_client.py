"""One boto3 client per process, and the one retry loop around its calls.

Credentials come by boto3's own chain (environment, profile, role) and appear in no message; when the server refuses
them, they are looked for anew, because a file or a process may have others by now. The endpoint is S3_ENDPOINT_URL, as
for Composer and streaming, else boto3's own. AWS_MAX_ATTEMPTS bounds the attempts (default 10).
"""

import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import boto3
import botocore.exceptions as boto
import urllib3
from botocore.config import Config
from botocore.parsers import ResponseParserError

from recipe.storage.places import AccessError, ChangedError, ExpiredKeysError, MissingError, StorageError

T = TypeVar("T")
FIRST_DELAY = 0.25  # seconds before the second attempt, doubled for each further one
LONGEST_DELAY = 15.0
MOST_RENEWALS = 3  # of the keys, for one call
CONNECT_TIMEOUT = 10  # seconds
READ_TIMEOUT = 30
CONNECTIONS = 32
ENDPOINTS = ("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
TRANSIENT_CODES = {
    "RequestTimeout",
    "SlowDown",
    "IncompleteBody",
    "BadDigest",
    "XAmzContentSHA256Mismatch",
    "ConditionalRequestConflict",
    "OperationAborted",
}
KEYS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
EXPIRED = {
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidToken",
    "RequestExpired",
    "TokenRefreshRequired",
    "InvalidAccessKeyId",  # of keys that were good before
}
REFUSALS = {
    "InvalidAccessKeyId": ("the server does not know the access key", KEYS),
    "SignatureDoesNotMatch": ("the secret key does not belong to the access key", KEYS),
    "ExpiredToken": ("the session token has expired", "get new credentials"),
    "ExpiredTokenException": ("the session token has expired", "get new credentials"),
    "TokenRefreshRequired": ("the session token has expired", "get new credentials"),
    "RequestExpired": ("the credentials have expired", "get new credentials"),
    "InvalidToken": ("the session token is not valid", "check AWS_SESSION_TOKEN"),
    "RequestTimeTooSkewed": ("the clock of this machine is wrong", "set it"),
}
NO_PERMISSION = ("the credentials do not permit this", "grant them list, read, write and delete, or use others")
WRONG_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}


class TransferCutError(Exception):
    """A body that ended early, or was stored other than sent; worth another attempt."""


FAILURES = (  # of which some may pass
    boto.ClientError,
    boto.BotoCoreError,
    ResponseParserError,
    urllib3.exceptions.HTTPError,
    TransferCutError,
    OSError,
)
_lock = threading.Lock()


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
    allowed, attempt, renewals = attempts_allowed(), 1, 0
    while True:
        connection = _connection()
        try:
            result = action(client())
            connection.worked = True
            return result
        except FAILURES as error:
            if renewals < MOST_RENEWALS and _refused(error) and _renewed(connection):
                renewals += 1
                continue
            expired = connection.worked and _expired(error)  # who renews them may be late
            if attempt == allowed or not (expired or _transient(error)):
                raise _explained(f"{where}: cannot {what}", error, attempt, expired) from None
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(attempt - 1, 10))
        time.sleep(delay * random.uniform(0.5, 1))
        attempt += 1


def status(error: boto.ClientError) -> int:
    """The HTTP status of the server's answer."""
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def code(error: boto.ClientError) -> str:
    """The name that S3 gives the error; the HTTP status where the answer has no body, as for HEAD."""
    return str(error.response.get("Error", {}).get("Code", status(error)))


def _transient(error: Exception) -> bool:
    if isinstance(error, boto.ClientError):
        passing = status(error) == 429 or (status(error) >= 500 and status(error) != 501)
        return passing or code(error) in TRANSIENT_CODES
    if isinstance(error, boto.BotoCoreError):
        kinds = (boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError, boto.FlexibleChecksumError)
        return isinstance(error, kinds)
    return True


def _refused(error: Exception) -> bool:
    """Whether other keys may be taken where these were not."""
    return isinstance(error, boto.ClientError) and (status(error) in (400, 401, 403) or code(error) in EXPIRED)


def _expired(error: Exception) -> bool:
    """Whether keys that were good before are so no longer. The answer to HEAD has no name for it."""
    return isinstance(error, boto.ClientError) and code(error) in (*EXPIRED, "400", "401")


def _explained(start: str, error: Exception, attempts: int, expired: bool) -> StorageError:
    """What the last failure means, and what to do."""
    if expired:
        return ExpiredKeysError(
            f"{start}: the credentials have expired ({reason(error)}, {attempts} attempts), and boto3 finds no newer "
            "ones; renew them, and the same command goes on"
        )
    if _transient(error):
        return StorageError(
            f"{start} ({reason(error)}, {attempts} attempts); check the network, the server and S3_ENDPOINT_URL"
        )
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        fix = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile or a role"
        return AccessError(f"{start}: there are no credentials; {fix}")
    if isinstance(error, boto.CredentialRetrievalError | boto.TokenRetrievalError | boto.SSOError | boto.LoginError):
        return AccessError(f"{start}: the credentials cannot be had ({type(error).__name__}); log in again")
    if not isinstance(error, boto.ClientError):
        return StorageError(f"{start} ({reason(error)}); check the address and the AWS_... settings")
    name = code(error)
    if name in REFUSALS or status(error) in (401, 403):
        meaning, fix = REFUSALS.get(name, NO_PERMISSION)
        return AccessError(f"{start}: {meaning} ({name}); {fix}")
    if name == "NoSuchBucket":
        return MissingError(f"{start}: there is no such bucket; create it or correct the address")
    if name in WRONG_REGION:
        return StorageError(f"{start}: the bucket is in another region ({name}); set AWS_DEFAULT_REGION")
    if status(error) == 404:
        return MissingError(f"{start}: there is no such object; check the address")
    if status(error) == 412:
        return ChangedError(f"{start}: it has changed since it was looked at; try again")
    return StorageError(f"{start} ({reason(error)}); check the address, the region and the credentials")


def reason(error: Exception) -> str:
    """A few words on one line. Messages of libraries are only passed on where they cannot hold a secret."""
    if isinstance(error, boto.ClientError):
        return f"answer {status(error)} {code(error)}"
    reasons = {
        boto.EndpointConnectionError: "no connection",
        boto.ConnectTimeoutError: f"no connection within {CONNECT_TIMEOUT} s",
        boto.ReadTimeoutError: f"no answer within {READ_TIMEOUT} s",
        boto.ConnectionClosedError: "the connection broke off",
        boto.IncompleteReadError: "the answer broke off",
        boto.ResponseStreamingError: "the answer broke off",
        boto.SSLError: "no secure connection",
    }
    known = [text for kind, text in reasons.items() if isinstance(error, kind)]
    if known:
        return known[0]
    if isinstance(error, TransferCutError | ValueError | boto.ParamValidationError):
        return " ".join(str(error).split())[:200]
    return type(error).__name__


def check_stored(answer: Mapping[str, Any], md5: str) -> None:
    """Raise TransferCutError if the ETag in an answer is an MD5, but not `md5` (in hexadecimal)."""
    encrypted = answer.get("ServerSideEncryption", "").startswith("aws:kms") or answer.get("SSECustomerAlgorithm")
    etag = answer["ETag"].strip('"')
    if not encrypted and len(etag) == 32 and etag != md5:
        raise TransferCutError("the server stored other bytes than were sent")
