"""Where a shard is: its URL as a pyarrow filesystem and a path.

Only these schemes exist here: nothing is run as a command, no HTTP is spoken, no redirect is followed.
"""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import parse_qsl, unquote, urlsplit

from pyarrow import fs

SCHEMES = ("file", "s3", "gs")
_CONNECT_TIMEOUT_S = 10.0
_S3_OPTIONS = {"anonymous", "endpoint_override", "region", "scheme"}


def locate(url: str) -> tuple[fs.FileSystem, str]:
    """Return filesystem and path of a shard URL.

    Raises:
        ValueError: a scheme that is not allowed, or no bucket, or an unknown option.
    """
    scheme, separator, _ = url.partition("://")
    if not separator:
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", url):
            raise ValueError(f"shard {url}: {_forbidden(url.split(':', 1)[0])}")
        return _filesystem("file", ""), url
    if scheme not in SCHEMES:
        raise ValueError(f"shard {url}: {_forbidden(scheme)}")
    parts = urlsplit(url)
    if scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise ValueError(f"shard {url}: a file URL names no host; write file:///absolute/path")
        return _filesystem("file", ""), unquote(parts.path)
    if not parts.netloc:
        raise ValueError(f"shard {url}: expected {scheme}://bucket/path")
    # the query holds connection options (endpoint_override, region), part of the filesystem and not of the path
    return _filesystem(scheme, parts.query), parts.netloc + parts.path


@lru_cache(maxsize=16)
def _filesystem(scheme: str, query: str) -> fs.FileSystem:
    if scheme == "file":
        return fs.LocalFileSystem()
    if scheme == "s3":
        return _s3(dict(parse_qsl(query, strict_parsing=bool(query))))
    filesystem, _ = fs.FileSystem.from_uri(f"{scheme}://bucket/path" + (f"?{query}" if query else ""))
    return filesystem


def _s3(options: dict[str, str]) -> fs.FileSystem:
    """Connect to S3. Every request is tried once: retries are ours, which know what a complete answer is."""
    if unknown := sorted(options.keys() - _S3_OPTIONS):
        raise ValueError(f"s3 URL: unknown option {unknown[0]!r}; expected {', '.join(sorted(_S3_OPTIONS))}")
    return fs.S3FileSystem(
        anonymous=options.pop("anonymous", "false") == "true",
        connect_timeout=_CONNECT_TIMEOUT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
        **options,
    )


def _forbidden(scheme: str) -> str:
    return f"scheme {scheme!r} is not allowed; use a local path, {', '.join(f'{name}://' for name in SCHEMES)}"
