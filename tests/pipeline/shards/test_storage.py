"""Reading shards, on disk and through a remote filesystem that fails on purpose."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from pyarrow import fs

from pipeline.shards import storage
from pipeline.shards.listing import expand_shards
from pipeline.shards.storage import (
    ShardStat,
    find_shards,
    open_shard,
    read_range,
    read_ranges,
    stat_shard,
    stat_shards,
)
from pipeline.storage import retries


@pytest.mark.parametrize(
    "url",
    [
        "pipe:touch /tmp/marker",
        "pipe://cat",
        "http://example.org/a.tar",
        "https://169.254.169.254/latest",
        "ftp://h/a.tar",
        "hf://datasets/a",
        "hdfs://h/a.tar",
        "data:application/x-tar;base64,AAAA",
        "javascript:x",
        "file://host/a.tar",
        "s3://",
        "gopen+http://h/a.tar",
        "S3://bucket/a.tar",
    ],
)
def test_storage_of_forbidden_url_is_refused_everywhere(url: str) -> None:
    with pytest.raises(ValueError, match="shard "):
        expand_shards([url])
    with pytest.raises(ValueError, match="shard "):
        stat_shard(url)
    with pytest.raises(ValueError, match="shard "):
        read_range(url, 0, 1)


def test_stat_and_read_of_local_file_and_file_url_agree(tmp_path: Path) -> None:
    path = tmp_path / "with space.tar"
    path.write_bytes(bytes(range(101)))
    url = f"file://{str(path).replace(' ', '%20')}"
    assert stat_shard(url) == stat_shard(str(path))
    assert stat_shard(url).size_bytes == 101
    assert read_range(url, 7, 13) == bytes(range(7, 20))
    assert list(read_ranges(str(path), [(0, 2), (50, 3)])) == [b"\x00\x01", bytes((50, 51, 52))]


def test_stat_of_missing_shard_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file; check"):
        stat_shard(str(tmp_path / "none.tar"))
    with pytest.raises(FileNotFoundError):
        stat_shard(str(tmp_path))


def test_stat_of_rewritten_shard_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"1")
    before = stat_shard(str(path))
    os.utime(path, ns=(1, 1))
    assert stat_shard(str(path)) != before


def test_read_range_beyond_the_end_is_an_error_not_a_short_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"12345")
    with pytest.raises(OSError, match="expected 4 bytes at byte 3, storage returned 2"):
        read_range(str(path), 3, 4)


class FlakyFile:
    def __init__(self, data: bytes, honest: bool = True) -> None:
        self._data, self._offset, self._honest = data, 0, honest

    def __enter__(self) -> FlakyFile:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def seek(self, offset: int) -> None:
        self._offset = offset

    def readinto(self, buffer: bytearray) -> int:
        data = self._data[self._offset : self._offset + len(buffer)]
        buffer[: len(data)] = data
        return len(data) if self._honest else len(buffer)


class FlakyFilesystem:
    """A remote filesystem whose first requests fail."""

    def __init__(self, data: bytes, failures: int, honest: bool = True) -> None:
        self._data, self.failures, self.requests, self._honest = data, failures, 0, honest

    def open_input_file(self, _path: str) -> FlakyFile:
        self.requests += 1
        if self.requests <= self.failures:
            raise OSError("503 slow down")
        return FlakyFile(self._data, self._honest)

    def get_file_info(self, path: str) -> fs.FileInfo:
        return fs.FileInfo(path, fs.FileType.File, size=len(self._data))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    recorded: list[float] = []
    monkeypatch.setattr("time.sleep", recorded.append)
    return recorded


def use(monkeypatch: pytest.MonkeyPatch, filesystem: FlakyFilesystem) -> None:
    monkeypatch.setattr(storage, "locate", lambda url: (filesystem, url))


def test_read_range_of_remote_shard_retries_and_returns_the_bytes(
    monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    remote = FlakyFilesystem(bytes(range(53)), failures=retries.ATTEMPTS - 1)
    use(monkeypatch, remote)
    assert read_range("s3://b/a.tar", 11, 5) == bytes(range(11, 16))
    assert remote.requests == retries.ATTEMPTS
    assert len(waits) == retries.ATTEMPTS - 1


def test_stat_shards_of_remote_shards_asks_for_several_at_once_and_keeps_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    meeting = threading.Barrier(2, timeout=30)

    class Remote(FlakyFilesystem):
        """Answers no question before two are asked."""

        def get_file_info(self, path: str) -> fs.FileInfo:
            meeting.wait()
            kind = fs.FileType.NotFound if path == "none" else fs.FileType.File
            return fs.FileInfo(path, kind, size=len(path))

    use(monkeypatch, Remote(b"", failures=0))
    assert stat_shards(["a", "bb"]) == [ShardStat(1, ""), ShardStat(2, "")]
    assert find_shards(["ccc", "none"]) == [ShardStat(3, ""), None]
    with pytest.raises(FileNotFoundError, match="shard none: no such file"):
        stat_shards(["none", "a"])


def test_read_range_of_dead_remote_gives_up_with_the_last_error(
    monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    remote = FlakyFilesystem(b"", failures=1000)
    use(monkeypatch, remote)
    with pytest.raises(OSError, match="storage failed 10 times, last with: 503 slow down"):
        read_range("s3://b/a.tar", 0, 1)
    assert remote.requests == retries.ATTEMPTS
    assert waits


def test_read_range_of_remote_that_sends_less_than_it_says_is_an_error(
    monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    use(monkeypatch, FlakyFilesystem(bytes(range(160, 173)), failures=0, honest=False))
    assert read_range("s3://b/a.tar", 0, 6) == bytes(range(160, 166))  # ends with a byte that is one of the marks
    with pytest.raises(OSError, match="was shorter"):
        read_range("s3://b/a.tar", 8, 6)
    assert len(waits) == retries.ATTEMPTS - 1
    assert 60 < sum(waits) < 93


def test_open_shard_of_remote_file_reads_lines_and_survives_failures(
    monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    monkeypatch.setattr(storage, "STREAM_BYTES", 5)
    remote = FlakyFilesystem(b"first line\nsecond\n", failures=3)
    use(monkeypatch, remote)
    with open_shard("s3://b/a.jsonl") as file:
        assert file.readlines() == [b"first line\n", b"second\n"]
    assert len(waits) == 3


def test_s3_url_with_unknown_option_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown option 'endpoint'"):
        stat_shard("s3://bucket/a.tar?endpoint=localhost")


def test_read_ranges_of_remote_shard_streams_forward(monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    use(monkeypatch, FlakyFilesystem(bytes(range(53)), failures=0))
    assert list(read_ranges("s3://b/a.tar", [(3, 2), (5, 1), (40, 3)])) == [b"\x03\x04", b"\x05", bytes((40, 41, 42))]
    with pytest.raises(OSError, match="storage returned 1"):
        list(read_ranges("s3://b/a.tar", [(52, 2)]))


def test_open_shard_reads_a_local_file_from_the_start(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"abc")
    with open_shard(str(tmp_path / "a.tar")) as file:
        assert file.read(2) == b"ab"
