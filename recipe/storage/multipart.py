"""Uploads of large files in parallel parts, all or nothing.

boto3's own upload_file (s3transfer 0.19) was tried against the faults of the tests. With botocore's retries it gets
through all of them and leaves as little behind, but it takes no Content-MD5 for its parts and hands out no answers, so
that what the server stored cannot be compared with what was sent; its retries would be a second loop beside that of
`s3_client.call`, with other rules and messages; and a server that forgets a completed upload, as some do, makes it fail
after a lost answer.
"""

import base64
import contextlib
import hashlib
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from recipe.storage.places import StorageError
from recipe.storage.s3_client import call
from recipe.storage.s3_errors import check_stored, code

PART_SIZE = 16 << 20  # bytes
MOST_PARTS = 10_000  # of one object, by S3's rules
PARALLEL_PARTS = 4


def upload(where: str, target: dict[str, str], path: Path, size: int, metadata: dict[str, str]) -> None:
    """Upload `size` bytes of a file to `target` (Bucket and Key). On failure nothing is left of it.

    Memory: PARALLEL_PARTS parts. An upload whose start was answered by silence stays behind, unseen, until the
    bucket's rule for incomplete uploads removes it.

    Raises:
        StorageError: as `s3_client.call`.
        OSError: the file cannot be read.
    """
    part_size = max(PART_SIZE, math.ceil(size / MOST_PARTS))
    started = call(where, "be written", lambda client: client.create_multipart_upload(**target, Metadata=metadata))
    part_of = {**target, "UploadId": started["UploadId"]}
    try:
        pool = ThreadPoolExecutor(PARALLEL_PARTS)
        try:
            numbers = range(1, math.ceil(size / part_size) + 1)
            tasks = [pool.submit(_upload_part, where, part_of, path, number, part_size) for number in numbers]
            parts = [task.result() for task in tasks]
        finally:
            pool.shutdown(cancel_futures=True)
        _complete(where, target, part_of, parts, metadata)
    except BaseException:
        _abort(where, part_of)
        raise


def _upload_part(where: str, part_of: dict[str, str], path: Path, number: int, part_size: int) -> dict[str, Any]:
    with open(path, "rb") as file:
        file.seek((number - 1) * part_size)
        data = file.read(part_size)
    digest = hashlib.md5(data, usedforsecurity=False)
    checksum = base64.b64encode(digest.digest()).decode()

    def put(client: Any) -> str:
        answer = client.upload_part(**part_of, PartNumber=number, Body=data, ContentMD5=checksum)
        check_stored(answer, digest.hexdigest())
        return answer["ETag"]

    return {"PartNumber": number, "ETag": call(where, "be written", put)}


def _complete(
    where: str, target: dict[str, str], part_of: dict[str, str], parts: list[dict[str, Any]], metadata: dict[str, str]
) -> None:
    def complete(client: Any) -> None:
        try:
            client.complete_multipart_upload(**part_of, MultipartUpload={"Parts": parts})
        except ClientError as error:
            # an earlier attempt may have succeeded although its answer was lost
            if code(error) != "NoSuchUpload" or client.head_object(**target)["Metadata"] != metadata:
                raise

    call(where, "be written", complete)


def _abort(where: str, part_of: dict[str, str]) -> None:
    with contextlib.suppress(StorageError):  # the failure that led here is the one to report
        call(where, "be cleaned up", lambda client: client.abort_multipart_upload(**part_of))
