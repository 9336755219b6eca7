"""Shard storage: list, stat and read shards on local disk, S3 and Google Cloud Storage through pyarrow.

Only these schemes exist here: nothing is run as a command, no HTTP is spoken, no redirect is followed. Remote reads are
retried a bounded number of times and always return exactly the bytes asked for, or raise.
"""

from __future__ import annotations

import glob
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import BinaryIO, NamedTuple, TypeVar, cast
from urllib.parse import unquote, urlsplit

from pyarrow import fs

SCHEMES = ("file", "s3", "gs")
REMOTE_ATTEMPTS = 5
"""Tries per remote request; the waits between them add up to at most 15 s."""
MAX_EXPANSION = 1_000_000
"""Most shards a brace range may name: a typing error in a range should not fill memory."""
_STREAM_BUFFER_BYTES = 8 * 1024 * 1024
_BRACES = re.compile(r"\{([^{}]*)\}")
_T = TypeVar("_T")


class ShardStat(NamedTuple):
    """What storage knows about a shard without reading it."""

    size_bytes: int
    version: str
    """Changes when the file is rewritten: modification time in nanoseconds since the epoch."""


def expand_shards(patterns: Sequence[str]) -> list[str]:
    """Turn folders, globs and `{000000..000007}` ranges into shard URLs.

    The order is that of the patterns; a folder or a glob is sorted by name.

    Raises:
        ValueError: a scheme that is not allowed, a pattern that matches nothing, or a shard that is named twice.
    """
    shards = [shard for pattern in patterns for braced in _expand_braces(pattern) for shard in _expand(braced)]
    if not shards:
        raise ValueError("no shards given; pass folders, globs or URLs of WebDataset tar files")
    seen: set[str] = set()
    for shard in shards:
        if shard in seen:
            raise ValueError(f"shard {shard} is named twice by {', '.join(patterns)}; every shard may appear once")
        seen.add(shard)
    return shards


def stat_shard(url: str) -> ShardStat:
    """Return size and version of a shard.

    Raises:
        ValueError: scheme not allowed.
        FileNotFoundError: no such file.
    """
    filesystem, path = _locate(url)
    info = _with_retries(lambda: filesystem.get_file_info(path), url)
    if info.type != fs.FileType.File:
        raise FileNotFoundError(f"shard {url}: no such file; check data.shards and that this machine can see it")
    return ShardStat(int(info.size), str(info.mtime_ns if info.mtime_ns is not None else ""))


@contextmanager
def open_shard(url: str) -> Iterator[BinaryIO]:
    """Open a shard for reading from start to end.

    Raises:
        ValueError: scheme not allowed.
    """
    filesystem, path = _locate(url)
    if isinstance(filesystem, fs.LocalFileSystem):
        with open(path, "rb") as file:
            yield file
        return
    with filesystem.open_input_stream(path, buffer_size=_STREAM_BUFFER_BYTES) as stream:
        yield cast(BinaryIO, stream)


def read_range(url: str, offset: int, size: int) -> bytes:
    """Return exactly `size` bytes of a shard from byte `offset`.

    Raises:
        ValueError: scheme not allowed.
        OSError: storage failed on every attempt, or the file is shorter than `offset + size`.
    """
    filesystem, path = _locate(url)
    if isinstance(filesystem, fs.LocalFileSystem):
        data = _read_local(path, offset, size)
    else:
        data = _with_retries(lambda: _read_remote(filesystem, path, offset, size), url)
    return _complete(url, offset, size, data)


def read_ranges(url: str, ranges: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """Yield the bytes of many (offset, size) ranges in ascending order.

    Remote shards are read through from start to end, which beats a request per range by far when ranges are small.

    Raises:
        ValueError: scheme not allowed.
        OSError: storage failed, or the file is shorter than a range says.
    """
    filesystem, _ = _locate(url)
    if isinstance(filesystem, fs.LocalFileSystem):
        yield from (read_range(url, offset, size) for offset, size in ranges)
        return
    with open_shard(url) as stream:
        position = 0
        for offset, size in ranges:
            while position < offset and (skipped := stream.read(min(offset - position, _STREAM_BUFFER_BYTES))):
                position += len(skipped)
            data = stream.read(size)
            position += len(data)
            yield _complete(url, offset, size, data)


def _complete(url: str, offset: int, size: int, data: bytes) -> bytes:
    if len(data) != size:
        raise OSError(
            f"shard {url}: expected {size} bytes at byte {offset}, storage returned {len(data)}; "
            "the file is shorter than when it was indexed: restore it or rebuild the index"
        )
    return data


def _read_local(path: str, offset: int, size: int) -> bytes:
    # opened per read: 10 us, and safe across fork, pickling and replaced files, unlike a cached descriptor
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)


def _read_remote(filesystem: fs.FileSystem, path: str, offset: int, size: int) -> bytes:
    with filesystem.open_input_file(path) as file:
        return bytes(file.read_at(size, offset))


def _with_retries(request: Callable[[], _T], url: str) -> _T:
    for attempt in range(1, REMOTE_ATTEMPTS):
        try:
            return request()
        except FileNotFoundError:
            raise
        except OSError:
            time.sleep(2 ** (attempt - 1) * random.uniform(0.5, 1.0))
    try:
        return request()
    except OSError as error:
        raise OSError(f"shard {url}: storage failed {REMOTE_ATTEMPTS} times, last with: {error}") from error


def _locate(url: str) -> tuple[fs.FileSystem, str]:
    """Return filesystem and path of a shard URL."""
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
    filesystem, _ = fs.FileSystem.from_uri(f"{scheme}://bucket/path" + (f"?{query}" if query else ""))
    return filesystem


def _forbidden(scheme: str) -> str:
    return f"scheme {scheme!r} is not allowed; use a local path, {', '.join(f'{name}://' for name in SCHEMES)}"


def _expand_braces(pattern: str) -> list[str]:
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [head + choice + rest for choice in _choices(match.group(1), pattern) for rest in _expand_braces(tail)]


def _choices(body: str, pattern: str) -> list[str]:
    first, separator, last = body.partition("..")
    if not separator:
        return body.split(",")
    if not (first.isdigit() and last.isdigit()) or int(last) < int(first):
        raise ValueError(f"shards {pattern}: expected a range such as {{000000..000007}}, found {{{body}}}")
    if int(last) - int(first) >= MAX_EXPANSION:
        raise ValueError(f"shards {pattern}: the range {{{body}}} names more than {MAX_EXPANSION} shards")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def _expand(pattern: str) -> list[str]:
    """Expand one folder or glob; a plain name is returned as it is, present or not, for `stat_shard` to report."""
    filesystem, path = _locate(pattern)
    if isinstance(filesystem, fs.LocalFileSystem):
        if os.path.isdir(path):
            return _not_empty(sorted(glob.glob(os.path.join(glob.escape(path), "*.tar"))), f"*.tar in folder {path}")
        if glob.has_magic(path) and not os.path.exists(path):
            return _not_empty(sorted(glob.glob(path)), f"files that match {path}")
        return [path]
    return _expand_remote(filesystem, path, pattern)


def _expand_remote(filesystem: fs.FileSystem, path: str, pattern: str) -> list[str]:
    scheme = pattern.partition("://")[0]
    query = urlsplit(pattern).query
    if path.endswith(".tar") and not glob.has_magic(path):
        return [pattern]
    folder = path if not glob.has_magic(path) else path.rpartition("/")[0]
    wanted = path if glob.has_magic(path) else f"{glob.escape(folder.rstrip('/'))}/*.tar"
    infos = _with_retries(lambda: filesystem.get_file_info(fs.FileSelector(folder.rstrip("/"))), pattern)
    names = sorted(info.path for info in infos if info.type == fs.FileType.File and fnmatchcase(info.path, wanted))
    suffix = f"?{query}" if query else ""
    return _not_empty([f"{scheme}://{name}{suffix}" for name in names], f"*.tar in {pattern}")


def _not_empty(shards: list[str], what: str) -> list[str]:
    if not shards:
        raise ValueError(f"shards: no {what}; check the path in data.shards")
    return shards
