"""Shard storage: stat and read shards on local disk, S3 and Google Cloud Storage through pyarrow.

Remote reads are retried a bounded number of times and always return exactly the bytes asked for, or raise.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple, TypeVar, cast

from pyarrow import fs

from pipeline.storage.locations import locate
from pipeline.storage.retries import refusal, with_retries

_CONCURRENT_REQUESTS = 32
STREAM_BYTES = 8 * 1024 * 1024
"""A remote file is read through in ranges of this size, each of which can be asked for again."""
_MARKS = (0xA5, 0x5A)
_T = TypeVar("_T")


class ShardStat(NamedTuple):
    """What storage knows about a shard without reading it."""

    size_bytes: int
    version: str
    """Changes when the file is rewritten: modification time in nanoseconds since the epoch."""


def stat_shard(url: str) -> ShardStat:
    """Return size and version of a shard.

    Raises:
        ValueError: scheme not allowed.
        FileNotFoundError: no such file.
    """
    filesystem, path = locate(url)
    info = with_retries(lambda: filesystem.get_file_info(path), f"shard {url}", ask=lambda: _list_one(filesystem, path))
    if info.type != fs.FileType.File:
        if not isinstance(filesystem, fs.LocalFileSystem):
            _check_bucket(filesystem, path, f"shard {url}")
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
    filesystem, path = locate(url)
    if isinstance(filesystem, fs.LocalFileSystem):
        with open(path, "rb") as file:
            yield file
        return
    with open_remote(url, stat_shard(url).size_bytes) as stream:
        yield stream


def open_remote(url: str, size_bytes: int) -> BinaryIO:
    """Open an object of known size; what is read in ranges survives failures of single requests."""
    return cast(BinaryIO, io.BufferedReader(_RemoteFile(url, size_bytes), STREAM_BYTES))


def read_range(url: str, offset: int, size: int) -> bytes:
    """Return exactly `size` bytes of a shard from byte `offset`.

    Raises:
        ValueError: scheme not allowed.
        OSError: storage failed on every attempt, or the file is shorter than `offset + size`.
    """
    filesystem, path = locate(url)
    if isinstance(filesystem, fs.LocalFileSystem):
        return _complete(url, offset, size, _read_local(path, offset, size))
    try:
        # a short answer is a failure like any other: asked for again, and an error in the end
        return with_retries(
            lambda: _complete(url, offset, size, _read_remote(filesystem, path, offset, size)),
            f"shard {url}",
            ask=lambda: _list_one(filesystem, path),
        )
    except FileNotFoundError:
        _check_bucket(filesystem, path, f"shard {url}")
        raise


def read_ranges(url: str, ranges: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """Yield the bytes of many (offset, size) ranges in ascending order.

    Remote shards are read through from start to end, which beats a request per range by far when ranges are small.

    Raises:
        ValueError: scheme not allowed.
        OSError: storage failed, or the file is shorter than a range says.
    """
    filesystem, _ = locate(url)
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


def _list_one(filesystem: fs.FileSystem, path: str) -> None:
    """List the folder of an object: an answer with a text, where a question for the object itself has none."""
    filesystem.get_file_info(fs.FileSelector(path.rpartition("/")[0] or path))


def _check_bucket(filesystem: fs.FileSystem, path: str, what: str) -> None:
    """Tell an object that is not there from a bucket that is not: both are answered without a text.

    Raises:
        StorageRefusedError: there is no such bucket.
    """
    bucket, _, key = path.partition("/")
    try:
        is_missing = bool(key) and filesystem.get_file_info(bucket).type == fs.FileType.NotFound
    except OSError:  # the right to read objects does not hold the right to ask for the bucket
        return
    if is_missing:
        raise refusal(what, f"NoSuchBucket: there is no bucket {bucket!r}")


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
    if all(isinstance(locate(url)[0], fs.LocalFileSystem) for url in urls):
        return [ask(url) for url in urls]  # 10 us each: threads would only cost
    with ThreadPoolExecutor(_CONCURRENT_REQUESTS) as pool:
        return list(pool.map(ask, urls))
