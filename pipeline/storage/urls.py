"""URLs of object storage, the same for shards, checkpoints and every other setting: `s3://bucket/key?option=value`.

A key is written as it is, without percent-encoding, as the AWS command line takes it. Options are those of the
connection; credentials have no place here, for URLs are shown, saved and tracked.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qsl

OBJECT_SCHEMES = ("s3", "gs")
_USER_INFO = re.compile(r"(?<=://)[^/\s\"'\\]*@")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class ObjectUrl(NamedTuple):
    """An object, or a prefix of objects."""

    scheme: str
    bucket: str
    key: str
    """Without a slash at the start; empty for the bucket itself."""
    options: tuple[tuple[str, str], ...]

    @property
    def path(self) -> str:
        """Bucket and key, as pyarrow names an object."""
        return f"{self.bucket}/{self.key}" if self.key else self.bucket


def parse_object_url(url: str, what: str = "URL") -> ObjectUrl:
    """Split a URL of object storage.

    Args:
        url: The URL.
        what: What messages call it, such as `shard`.

    Raises:
        ValueError: another scheme, no bucket, user and password, or a key that cannot be named this way.
    """
    shown = f"{what} {without_credentials(url)}"
    scheme, _, rest = url.partition("://")
    if scheme not in OBJECT_SCHEMES:
        raise ValueError(f"{shown}: expected {' or '.join(f'{name}://' for name in OBJECT_SCHEMES)}")
    place, separator, query = rest.partition("?")
    bucket, _, key = place.partition("/")
    if "@" in bucket:
        raise ValueError(
            f"{shown}: user and password in a URL would be shown wherever the URL is; use AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, a profile, or for gs:// GOOGLE_APPLICATION_CREDENTIALS"
        )
    if not bucket:
        raise ValueError(f"{shown}: expected {scheme}://bucket/path")
    _check_key(key, shown)
    return ObjectUrl(scheme, bucket, key, _parse_options(query, shown) if separator else ())


def _check_key(key: str, shown: str) -> None:
    if "#" in key:
        raise ValueError(f"{shown}: '#' is where some programs end a URL; rename the object or folder")
    if _CONTROL.search(key):
        raise ValueError(f"{shown!r}: a name with control characters; rename the object or folder")
    segments = key.removesuffix("/").split("/")
    if key and any(segment in ("", ".", "..") for segment in segments):
        raise ValueError(f"{shown}: '.', '..' or nothing between two slashes; object stores have no such folders")


def _parse_options(query: str, shown: str) -> tuple[tuple[str, str], ...]:
    try:
        return tuple(sorted(parse_qsl(query, keep_blank_values=True, strict_parsing=True)))
    except ValueError:
        raise ValueError(
            f"{shown}: after '?' come options such as region=eu-west-1&endpoint_override=HOST:PORT; an object whose "
            "name holds '?' cannot be read, rename it"
        ) from None


def check_shard_urls(shards: tuple[str, ...]) -> tuple[str, ...]:
    """Return shard paths and URLs, of which those of object storage can be used.

    Raises:
        ValueError: one cannot.
    """
    for shard in shards:
        if shard.partition("://")[0] in OBJECT_SCHEMES:
            parse_object_url(shard, "shard")
    return shards


def check_local(path: str, what: str, remedy: str) -> str:
    """Return a path of this machine's file systems.

    Raises:
        ValueError: it is a URL, which would become a folder of that name in the current directory.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", path):
        raise ValueError(f"{what} {without_credentials(path)} is a URL, expected a folder; {remedy}")
    return path


def check_run_dir(place: str, what: str = "run_dir") -> str:
    """Return a folder of this machine's file systems, or a prefix of an object store with conditional writes.

    Raises:
        ValueError: a URL of something else, without a prefix, or one that cannot be used.
    """
    if not place.startswith("s3://"):
        return check_local(
            place,
            what,
            "only s3:// has the conditional writes that a run folder needs. Choose a folder that all machines of the "
            "run share, and let checkpoint.folder be the URL to store checkpoints in object storage",
        )
    if not parse_object_url(place, what).key.strip("/"):
        raise ValueError(f"{what} {place}: expected a prefix below the bucket, such as s3://bucket/runs/NAME")
    return place


def below(url: str, name: str) -> str:
    """Return the URL of a name below a prefix, with the same options."""
    place, separator, options = url.partition("?")
    return f"{place.rstrip('/')}/{name}{separator}{options}"


def without_credentials(text: str) -> str:
    """Return a text whose addresses have lost user and password: `s3://key:secret@bucket/a` becomes `s3://bucket/a`.

    Args:
        text: An address, or anything that holds some, such as JSON, YAML or a message.
    """
    return _USER_INFO.sub("", text)
