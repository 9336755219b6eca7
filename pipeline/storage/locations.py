"""Where a file is: its URL as a pyarrow filesystem and a path. The only place that connects to object storage.

Only these schemes are supported: no commands are run, no HTTP is used, no redirects are followed.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from urllib.parse import unquote, urlencode, urlsplit

from pyarrow import fs

from pipeline.storage.aws_settings import VARIABLES, S3Settings, resolve_s3
from pipeline.storage.urls import OBJECT_SCHEMES, parse_object_url, without_credentials

SCHEMES = ("file", *OBJECT_SCHEMES)
_CONNECT_TIMEOUT_S = 10.0
_LOCAL = fs.LocalFileSystem()


def locate(url: str, what: str = "shard", request_tries: int = 1) -> tuple[fs.FileSystem, str]:
    """Return filesystem and path of a URL, or of a local path.

    Args:
        url: `s3://` or `gs://` with a key as it is, `file://`, or a path.
        what: What messages call it.
        request_tries: How often the client of S3 tries one request; 1 leaves retries to `with_retries`.

    Raises:
        ValueError: a scheme that is not allowed, no bucket, credentials, or an unknown option.
    """
    scheme, separator, _ = url.partition("://")
    if not separator:
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", url):
            raise ValueError(f"{what} {url}: {_forbidden(url.split(':', 1)[0])}")
        return _LOCAL, url
    if scheme == "file":
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise ValueError(
                f"{what} {without_credentials(url)}: a file URL names no host; write file:///absolute/path"
            )
        return _LOCAL, unquote(parts.path)
    if scheme not in SCHEMES:
        raise ValueError(f"{what} {without_credentials(url)}: {_forbidden(scheme)}")
    parsed = parse_object_url(url, what)
    environment = tuple(os.environ.get(name) for name in VARIABLES)
    return _connect(parsed.scheme, parsed.options, environment, request_tries), parsed.path


@lru_cache(maxsize=16)
def _connect(
    scheme: str, options: tuple[tuple[str, str], ...], environment: tuple[str | None, ...], request_tries: int
) -> fs.FileSystem:
    if scheme == "gs":
        query = f"?{urlencode(options)}" if options else ""
        filesystem, _ = fs.FileSystem.from_uri(f"gs://bucket/path{query}")
        return filesystem
    known = {name: value for name, value in zip(VARIABLES, environment, strict=True) if value is not None}
    return _connect_s3(resolve_s3(dict(options), known), request_tries)


def _connect_s3(settings: S3Settings, request_tries: int) -> fs.FileSystem:
    access_key, secret_key, session_token = settings.keys or (None, None, None)
    return fs.S3FileSystem(
        access_key=access_key,
        secret_key=secret_key,
        session_token=session_token,
        anonymous=settings.anonymous,
        region=settings.region,
        scheme=settings.scheme,
        endpoint_override=settings.endpoint,
        force_virtual_addressing=settings.virtual_addressing,
        tls_ca_file_path=settings.ca_bundle,
        connect_timeout=_CONNECT_TIMEOUT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=request_tries),
    )


def _forbidden(scheme: str) -> str:
    return f"scheme {scheme!r} is not allowed; use a local path, {', '.join(f'{name}://' for name in SCHEMES)}"
