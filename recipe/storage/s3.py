"""A folder under `s3://bucket/prefix` as a place."""

import base64
import builtins
import contextlib
import email.utils
import hashlib
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from recipe.storage import multipart
from recipe.storage.files import file_sha256, named_errors
from recipe.storage.places import Entry, FileInfo, MissingError, Place, StorageError, is_temporary
from recipe.storage.s3_client import call, endpoint
from recipe.storage.s3_errors import TransferCutError, code, status

MULTIPART_THRESHOLD = 64 << 20  # bytes from which a file is uploaded in parts
DELETERS = 8  # threads
WRITER = "writer"  # user metadata of conditional writes: marks a write as our own
SHA256 = "sha256"  # user metadata of uploads


class S3Place(Place):
    """Objects of one bucket whose keys start with one prefix. Each request is repeated as `s3_client.call` says."""

    is_local = False

    def __init__(self, bucket: str, prefix: str = ""):
        self.bucket = bucket
        self.prefix = prefix
        self.address = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"

    def list(self, prefix: str = "") -> builtins.list[Entry]:
        base = f"{self.prefix}/" if self.prefix else ""
        entries, more = [], {}
        while more is not None:
            page = self._list_page(base + prefix, **more)
            for found in page.get("Contents", []):
                name = found["Key"][len(base) :]
                if name and not name.endswith("/") and not is_temporary(name):
                    entries.append(Entry(name, found["Size"], found["LastModified"].timestamp()))
            more = {"ContinuationToken": page["NextContinuationToken"]} if page.get("IsTruncated") else None
        return sorted(entries)

    def info(self, name: str) -> FileInfo | None:
        def look(client: Any) -> FileInfo | None:
            try:
                found = client.head_object(**self._object(name))
            except ClientError as error:
                if status(error) == 404:
                    return None
                raise
            digest = found["Metadata"].get(SHA256)
            return FileInfo(found["ContentLength"], found["ETag"], found["LastModified"].timestamp(), digest)

        return call(self.describe(name), "be looked at", look)

    def read(self, name: str, start: int = 0, length: int | None = None, version: str | None = None) -> bytes:
        options = {} if version is None else {"IfMatch": version}
        if length == 0:
            return b""
        if start or length is not None:
            options["Range"] = f"bytes={start}-{'' if length is None else start + length - 1}"

        def get(client: Any) -> bytes:
            try:
                answer = client.get_object(**self._object(name), **options)
            except ClientError as error:
                if status(error) == 416:
                    return b""
                raise
            with contextlib.closing(answer["Body"]) as body:  # one that was cut would keep its connection open
                data = body.read()
            if len(data) != answer["ContentLength"]:
                raise TransferCutError(f"{len(data)} of {answer['ContentLength']} bytes came")
            if "Range" in options and not answer.get("ContentRange", "").startswith(f"bytes {start}-"):
                raise StorageError(f"{self.describe(name)}: the server does not read ranges; use another server")
            return data

        data = call(self.describe(name), "be read", get)
        if length is not None and len(data) < length:
            what = f"ends at byte {start + len(data)}" if data else f"ends before byte {start}"
            raise StorageError(f"{self.describe(name)}: {what}, not {start + length}; fetch or make it again")
        if start and not data and start > (self.size(name) or 0):
            raise StorageError(f"{self.describe(name)}: ends before byte {start}; fetch or make it again")
        return data

    def read_versioned(self, name: str) -> tuple[bytes, str, float, float] | None:
        def get(client: Any) -> tuple[bytes, str, float, float]:
            answer = client.get_object(**self._object(name))
            date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
            modified = answer["LastModified"].timestamp()
            now = email.utils.parsedate_to_datetime(date).timestamp() if date else modified
            with contextlib.closing(answer["Body"]) as body:
                return body.read(), answer["ETag"], modified, now

        try:
            return call(self.describe(name), "be read", get)
        except MissingError:
            self._check_listing(write=False)  # a missing bucket is an error, a missing object is not
            return None

    def write(self, name: str, data: bytes) -> None:
        self._put(name, data, {})

    def write_new(self, name: str, data: bytes) -> bool:
        return self._put_if(name, data, IfNoneMatch="*")

    def replace(self, name: str, data: bytes, version: str) -> bool:
        return self._put_if(name, data, IfMatch=version)

    def upload(self, name: str, path: Path) -> None:
        with named_errors(path, "be read"):
            before = path.stat()
            metadata = {SHA256: file_sha256(path)}
            if before.st_size < MULTIPART_THRESHOLD:
                self._put(name, path.read_bytes(), metadata)
            else:
                multipart.upload(self.describe(name), self._object(name), path, before.st_size, metadata)
            after = path.stat()
        stored = self.info(name)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise StorageError(f"{path}: was changed while it was uploaded to {self.describe(name)}; upload it again")
        if stored is None or stored.size != before.st_size:
            found = "is not there" if stored is None else f"has {stored.size} bytes instead of {before.st_size}"
            raise StorageError(f"{self.describe(name)}: {found} after its upload; upload it again")

    def delete(self, names: Sequence[str]) -> None:
        def delete_one(name: str) -> None:
            call(self.describe(name), "be deleted", lambda client: client.delete_object(**self._object(name)))

        with ThreadPoolExecutor(DELETERS) as pool:
            for _ in pool.map(delete_one, names):
                pass

    def child(self, name: str) -> "S3Place":
        return S3Place(self.bucket, "/".join(filter(None, (self.prefix, self._checked(name)))))

    def describe(self, name: str = "") -> str:
        return f"{'/'.join(filter(None, (self.address, name)))} at {endpoint()}"

    def _check_listing(self, write: bool) -> None:
        self._list_page(f"{self.prefix}/" if self.prefix else "", MaxKeys=1)

    def _list_page(self, prefix: str, **options: Any) -> Mapping[str, Any]:
        def list_page(client: Any) -> Mapping[str, Any]:
            return client.list_objects_v2(Bucket=self.bucket, Prefix=prefix, **options)

        return call(self.describe(), "be listed", list_page)

    def _object(self, name: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": "/".join(filter(None, (self.prefix, self._checked(name))))}

    def _put(self, name: str, data: bytes, metadata: dict[str, str]) -> None:
        call(self.describe(name), "be written", lambda client: put(client, self._object(name), data, metadata))

    def _put_if(self, name: str, data: bytes, **condition: str) -> bool:
        """A conditional write. After a lost answer, a mark in the metadata shows whether the object is our own."""
        mark, attempts = secrets.token_hex(16), 0

        def attempt(client: Any) -> bool:
            nonlocal attempts
            attempts += 1
            try:
                put(client, self._object(name), data, {WRITER: mark}, **condition)
            except ClientError as error:
                if status(error) != 412 and not ("IfMatch" in condition and code(error) in ("NoSuchKey", "404")):
                    raise
                return attempts > 1 and self._writer(client, name) == mark
            return True

        return call(self.describe(name), "be written", attempt)

    def _writer(self, client: Any, name: str) -> str | None:
        try:
            return client.head_object(**self._object(name))["Metadata"].get(WRITER)
        except ClientError as error:
            if status(error) == 404:
                return None
            raise


def put(client: Any, target: dict[str, str], data: bytes, metadata: dict[str, str], **condition: str) -> None:
    """One PUT, refused by the server if other bytes arrive, and checked against what it says to have stored."""
    digest = hashlib.md5(data, usedforsecurity=False)
    checksum = base64.b64encode(digest.digest()).decode()
    answer = client.put_object(**target, Body=data, ContentMD5=checksum, Metadata=metadata, **condition)
    multipart.check_stored(answer, digest.hexdigest())
