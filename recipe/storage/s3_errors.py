"""What failures of S3 mean: which may pass, which are of the keys, and what to tell the user."""

from collections.abc import Mapping
from typing import Any

import botocore.exceptions as boto
import urllib3
from botocore.parsers import ResponseParserError

from recipe.storage.places import AccessError, ChangedError, ExpiredKeysError, MissingError, StorageError

CONNECT_TIMEOUT = 10  # seconds
READ_TIMEOUT = 30
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
UNREACHED = boto.EndpointConnectionError, boto.ConnectTimeoutError, boto.ProxyConnectionError, boto.SSLError


def status(error: boto.ClientError) -> int:
    """The HTTP status of the server's answer."""
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def code(error: boto.ClientError) -> str:
    """The name that S3 gives the error; the HTTP status where the answer has no body, as for HEAD."""
    return str(error.response.get("Error", {}).get("Code", status(error)))


def is_transient(error: Exception) -> bool:
    if isinstance(error, boto.ClientError):
        passing = status(error) == 429 or (status(error) >= 500 and status(error) != 501)
        return passing or code(error) in TRANSIENT_CODES
    if isinstance(error, boto.BotoCoreError):
        kinds = (boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError, boto.FlexibleChecksumError)
        return isinstance(error, kinds)
    return True


def is_refused(error: Exception) -> bool:
    """Whether other keys may be taken where these were not."""
    return isinstance(error, boto.ClientError) and (status(error) in (400, 401, 403) or code(error) in EXPIRED)


def is_expired(error: Exception) -> bool:
    """Whether keys that were good before are so no longer. The answer to HEAD has no name for it."""
    return isinstance(error, boto.ClientError) and code(error) in (*EXPIRED, "400", "401")


def explained(start: str, error: Exception, attempts: int, expired: bool) -> StorageError:
    """What the last failure means, and what to do."""
    if expired:
        return ExpiredKeysError(
            f"{start}: the credentials have expired ({reason(error)}, {attempts} attempts), and boto3 finds no newer "
            "ones; renew them, and the same command goes on"
        )
    if is_transient(error):
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
