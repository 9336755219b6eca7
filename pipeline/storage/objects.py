"""Small objects under a prefix of S3, written on condition: what a run folder in object storage is made of.

pyarrow, which moves large files, has no conditional writes; boto3 has. Connection, retries and refusals are those of
every other URL. An object that was created by a request whose answer was lost is recognised by its content, so contents
given to `create` must differ between writers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pipeline.storage.aws_settings import VARIABLES, resolve_s3
from pipeline.storage.retries import with_retries
from pipeline.storage.urls import parse_object_url

_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 10, 60
_DELETED_PER_CALL = 1000
_PART_TRIES = 3  # of a part of a large file, before the file begins again; else only `with_retries` asks again
_ABSENT = ("NoSuchKey", "404")
_T = TypeVar("_T")


class ObjectInfo(NamedTuple):
    """What a listing says of an object."""

    key: str
    """Below the prefix."""
    size_bytes: int
    etag: str
    """Changes with the content."""


class Stored(NamedTuple):
    """An object that was read."""

    content: bytes
    etag: str
    age_s: float
    """Seconds since it was written, by the clock of the service."""


class ObjectFolder:
    """The objects below one `s3://bucket/prefix`."""

    def __init__(self, url: str, what: str = "run_dir") -> None:
        """Connect with the first request.

        Args:
            url: of the prefix.
            what: what messages call it.

        Raises:
            ValueError: not a URL of S3 with a prefix.
        """
        parsed = parse_object_url(url, what)
        if parsed.scheme != "s3" or not parsed.key.strip("/"):
            raise ValueError(f"{what} {url}: expected s3://bucket/prefix")
        self.url = url.partition("?")[0].rstrip("/")
        """Without options."""
        self.what = what
        self._bucket, self._prefix, self._parsed = parsed.bucket, parsed.key.strip("/") + "/", parsed

    def read(self, key: str) -> Stored:
        """Return an object.

        Raises:
            FileNotFoundError: there is none.
            OSError: the storage failed, or refused.
        """

        def get(client: Any) -> Stored:
            answer = client.get_object(Bucket=self._bucket, Key=self._prefix + key)
            now = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
            written: datetime = answer["LastModified"]
            age = (parsedate_to_datetime(now) - written).total_seconds() if now else 0.0
            return Stored(answer["Body"].read(), answer["ETag"], max(0.0, age))

        return self._ask(get, key)

    def find(self, key: str) -> Stored | None:
        """Return an object, or None if there is none."""
        try:
            return self.read(key)
        except FileNotFoundError:
            return None

    def write(self, key: str, content: bytes) -> str:
        """Write or replace an object; returns its etag."""
        return self._ask(
            lambda client: str(client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=content)["ETag"]),
            key,
        )

    def create(self, key: str, content: bytes) -> bool:
        """Write an object unless there is one; returns whether it is there with this content.

        Args:
            key: of the object.
            content: no other writer creates an object with the same.
        """

        def put(client: Any) -> bool:
            try:
                client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=content, IfNoneMatch="*")
            except client.exceptions.ClientError as error:
                if _code(error) not in ("PreconditionFailed", "412"):
                    raise
                return False
            return True

        if self._ask(put, key):
            return True
        found = self.find(key)
        return found is not None and found.content == content

    def list(self, prefix: str = "", after: str = "") -> list[ObjectInfo]:
        """Return the objects whose keys begin with `prefix`, in the order of their keys, from behind `after` on."""

        def ask(client: Any) -> list[ObjectInfo]:
            found = []
            options = {"StartAfter": self._prefix + after} if after else {}
            pages = client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix, **options):
                for entry in page.get("Contents", ()):
                    key = entry["Key"].removeprefix(self._prefix)
                    found.append(ObjectInfo(key, entry["Size"], entry["ETag"]))
            return found

        return self._ask(ask, prefix)

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects, as far as they are there."""
        doomed = [{"Key": self._prefix + key} for key in keys]
        if len(doomed) == 1:
            self._ask(lambda client: client.delete_object(Bucket=self._bucket, **doomed[0]))
            return
        for start in range(0, len(doomed), _DELETED_PER_CALL):
            some = {"Objects": doomed[start : start + _DELETED_PER_CALL], "Quiet": True}
            self._ask(partial(_delete, self._bucket, some))

    def upload(self, path: Path, key: str) -> None:
        """Copy a file into an object, in parts when it is large."""
        self._ask(lambda client: client.upload_file(str(path), self._bucket, self._prefix + key), key, _PART_TRIES)

    def download(self, key: str, path: Path) -> None:
        """Copy an object into a file, which is replaced once all of it is there."""
        partial = path.with_name(f".{path.name}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._ask(lambda client: client.download_file(self._bucket, self._prefix + key, str(partial)), key, _PART_TRIES)
        partial.replace(path)

    def _ask(self, request: Callable[[Any], _T], key: str = "", tries: int = 1) -> _T:
        import boto3.exceptions
        import botocore.exceptions

        def once() -> _T:
            try:
                environment = tuple(os.environ.get(name) for name in VARIABLES)
                return request(_client(self._parsed.options, environment, os.getpid(), tries))
            except botocore.exceptions.ClientError as error:
                if _code(error) in _ABSENT:
                    raise FileNotFoundError(f"{self.url}/{key}: no such object") from None
                told = error.response.get("Error", {})
                raise OSError(f"{_code(error)}: {told.get('Message', 'no text')}") from error
            except (botocore.exceptions.BotoCoreError, boto3.exceptions.Boto3Error) as error:
                raise OSError(str(error)) from error

        return with_retries(once, f"{self.what} {self.url}/{key}", is_timed=False)


def _delete(bucket: str, objects: dict[str, Any], client: Any) -> None:
    client.delete_objects(Bucket=bucket, Delete=objects)


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", error.response["ResponseMetadata"]["HTTPStatusCode"]))


@lru_cache(maxsize=16)
def _client(
    options: tuple[tuple[str, str], ...], environment: tuple[str | None, ...], _process: int, tries: int
) -> Any:
    import boto3  # half a second, which runs on disks need not pay
    from botocore import UNSIGNED
    from botocore.config import Config

    known = {name: value for name, value in zip(VARIABLES, environment, strict=True) if value is not None}
    settings = resolve_s3(dict(options), known)
    access_key, secret_key, session_token = settings.keys or (None, None, None)
    style = {"s3": {"addressing_style": "virtual"}} if settings.virtual_addressing else {}
    if settings.endpoint is not None and not style:
        style = {"s3": {"addressing_style": "path"}}
    return boto3.session.Session(profile_name=dict(options).get("profile")).client(
        "s3",
        endpoint_url=f"{settings.scheme}://{settings.endpoint}" if settings.endpoint else None,
        region_name=settings.region,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        aws_session_token=session_token,
        verify=settings.ca_bundle,
        config=Config(
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=_READ_TIMEOUT_S,
            retries={"total_max_attempts": tries},
            max_pool_connections=32,
            # many stores that speak S3 know no others
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            **({"signature_version": UNSIGNED} if settings.anonymous else {}),
            **style,
        ),
    )
