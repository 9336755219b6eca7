"""Shard storage: list, stat and read shards on local disk, S3 and Google Cloud Storage through pyarrow.

Only these schemes exist here: nothing is run as a command, no HTTP is spoken, no redirect is followed. Remote reads are
retried a bounded number of times and always return exactly the bytes asked for, or raise.
"""

from __future__ import annotations

import glob
import io
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import BinaryIO, NamedTuple, TypeVar, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from pyarrow import fs

SCHEMES = ("file", "s3", "gs")
REMOTE_ATTEMPTS = 8
"""Tries per remote request; the waits between them add up to at most 52 s."""
FIRST_WAIT_S = 0.5
"""Wait after the first failure, doubled after each further one, less up to half of it so that workers spread out."""
REQUEST_TIMEOUT_S = 60.0
"""Longest a request may take: pyarrow has no timeout for a connection that stays open and sends nothing."""
_LONGEST_WAIT_S = 20.0
_CONCURRENT_REQUESTS = 32
_CONNECT_TIMEOUT_S = 10.0
MAX_EXPANSION = 1_000_000
"""Most shards a brace range may name: a typing error in a range should not fill memory."""
STREAM_BYTES = 8 * 1024 * 1024
"""A remote file is read through in ranges of this size, each of which can be asked for again."""
_BRACES = re.compile(r"\{([^{}]*)\}")
_MARKS = (0xA5, 0x5A)
_S3_OPTIONS = {"anonymous", "endpoint_override", "region", "scheme"}
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


def stat_shards(urls: Sequence[str]) -> list[ShardStat]:
    """Return size and version of many shards, as `stat_shard` does of one; remote storage answers 32 at a time.

    Raises:
        ValueError: scheme not allowed.
        FileNotFoundError: no such file; the first one is named.
    """
    return _ask_for_all(stat_shard, urls)


def find_shards(urls: Sequence[str]) -> list[ShardStat | None]:
    """Return size and version of many shards as `stat_shards` does, but None for one that does not exist."""
    return _ask_for_all(_find, urls)


@contextmanager
def open_shard(url: str) -> Iterator[BinaryIO]:
    """Open a shard for reading from start to end; a remote one survives failures of single requests.

    Raises:
        ValueError: scheme not allowed.
        FileNotFoundError: no such file.
    """
    filesystem, path = _locate(url)
    if isinstance(filesystem, fs.LocalFileSystem):
        with open(path, "rb") as file:
            yield file
        return
    with io.BufferedReader(_RemoteFile(url, stat_shard(url).size_bytes), STREAM_BYTES) as stream:
        yield cast(BinaryIO, stream)


def read_range(url: str, offset: int, size: int) -> bytes:
    """Return exactly `size` bytes of a shard from byte `offset`.

    Raises:
        ValueError: scheme not allowed.
        OSError: storage failed on every attempt, or the file is shorter than `offset + size`.
    """
    filesystem, path = _locate(url)
    if isinstance(filesystem, fs.LocalFileSystem):
        return _complete(url, offset, size, _read_local(path, offset, size))
    # a short answer is a failure like any other: asked for again, and an error in the end
    return _with_retries(lambda: _complete(url, offset, size, _read_remote(filesystem, path, offset, size)), url)


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
            while position < offset and (skipped := stream.read(min(offset - position, STREAM_BYTES))):
                position += len(skipped)
            data = stream.read(size)
            position += len(data)
            yield _complete(url, offset, size, data)


class _RemoteFile(io.RawIOBase):
    """A remote file as a stream of range reads, so that a connection that breaks costs one range."""

    def __init__(self, url: str, size_bytes: int) -> None:
        super().__init__()
        self._url, self._left, self._offset = url, size_bytes, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        size = min(len(buffer), self._left)
        if size:
            buffer[:size] = read_range(self._url, self._offset, size)
        self._offset, self._left = self._offset + size, self._left - size
        return size


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
    """Return what storage sent of a range.

    pyarrow reports a range as read in full even when the answer to it was shorter (a gateway may send less than asked
    for, with matching headers), and leaves the rest of the buffer as it was. So the last byte is marked beforehand, and
    found marked afterwards, is read again under another mark: data changes one of them, a short answer none.
    """
    if not size:
        return b""
    with filesystem.open_input_file(path) as file:
        for mark in _MARKS:
            buffer = bytearray(size)
            buffer[-1] = mark
            file.seek(offset)
            num_read = file.readinto(buffer)
            if num_read < size or buffer[-1] != mark:
                return bytes(buffer[:num_read])
    raise OSError(f"the answer to a request for {size} bytes at byte {offset} was shorter")


def _find(url: str) -> ShardStat | None:
    try:
        return stat_shard(url)
    except FileNotFoundError:
        return None


def _ask_for_all(ask: Callable[[str], _T], urls: Sequence[str]) -> list[_T]:
    if all(isinstance(_locate(url)[0], fs.LocalFileSystem) for url in urls):
        return [ask(url) for url in urls]  # 10 us each: threads would only cost
    with ThreadPoolExecutor(_CONCURRENT_REQUESTS) as pool:
        return list(pool.map(ask, urls))


def _with_retries(request: Callable[[], _T], url: str) -> _T:
    for attempt in range(1, REMOTE_ATTEMPTS):
        try:
            return _within_time(request)
        except FileNotFoundError:
            raise
        except OSError:
            time.sleep(min(_LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0))
    try:
        return _within_time(request)
    except OSError as error:
        raise OSError(f"shard {url}: storage failed {REMOTE_ATTEMPTS} times, last with: {error}") from error


def _within_time(request: Callable[[], _T]) -> _T:
    """Run a request in a thread of its own, which is left behind when it does not answer in time."""
    answer: Future[_T] = Future()

    def run() -> None:
        try:
            answer.set_result(request())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, name="storage-request", daemon=True).start()
    try:
        return answer.result(timeout=REQUEST_TIMEOUT_S)
    except FutureTimeoutError:
        if answer.done():  # the request's own timeout
            raise
        raise OSError(f"no complete answer within {REQUEST_TIMEOUT_S:g} s") from None


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
