"""The strict reader: what `tarfile` writes is read back exactly, and nothing damaged passes."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import Reason, ShardError
from pipeline.shards.tar import MAX_EXTENSION_BYTES, TarMember, scan_tar
from tests.pipeline.shards.archives import BLOCK, END, entry, tar_bytes

FILES = [(f"sample{idx}.txt", bytes([idx]) * size) for idx, size in enumerate((0, 1, 511, 512, 513, 1024))]


def scan(data: bytes, **limits: int) -> list[TarMember]:
    return list(scan_tar(io.BytesIO(data), len(data), **limits))


def scan_until_error(data: bytes) -> tuple[list[TarMember], Reason | None]:
    members: list[TarMember] = []
    try:
        for member in scan_tar(io.BytesIO(data), len(data)):
            members.append(member)
    except ShardError as error:
        return members, error.reason
    return members, None


def expect(data: bytes, reason: Reason) -> ShardError:
    with pytest.raises(ShardError) as caught:
        scan(data)
    assert caught.value.reason == reason
    return caught.value


names = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_characters="/"), min_size=1, max_size=300)


@settings(max_examples=60, deadline=None)
@given(
    files=st.lists(st.tuples(names, st.binary(max_size=1500)), max_size=5),
    tar_format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_scan_of_what_tarfile_writes_equals_tarfile(files: list[tuple[str, bytes]], tar_format: int) -> None:
    data = tar_bytes(files, tar_format)
    if not files:
        expect(data, Reason.SHARD_EMPTY)
        return
    found = scan(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert [(m.name, m.offset, m.size) for m in found] == [(m.name, m.offset_data, m.size) for m in archive]
    assert [m.data for m in found] == [content for _, content in files]
    assert [m.crc32 for m in found] == [zlib.crc32(content) for _, content in files]


def test_scan_of_ustar_prefix_joins_folder_and_name() -> None:
    name = "f" * 90 + "/" + "g" * 60 + ".txt"
    assert [m.name for m in scan(tar_bytes([(name, b"x")]))] == [name]


def test_scan_of_old_writer_with_signed_checksum_is_accepted() -> None:
    block = bytearray(entry("n\u00e4me.txt", size=0))
    rest = block[:148] + b" " * 8 + block[156:]
    signed = sum(byte - 256 if byte > 127 else byte for byte in rest)
    block[148:156] = f"{signed:06o}\0 ".encode()
    assert [m.name for m in scan(bytes(block) + END)] == ["n\u00e4me.txt"]


def test_scan_of_name_that_is_not_utf8_keeps_an_opaque_label() -> None:
    data = bytearray(tar_bytes([("k.txt", b"x")]))
    data[0] = 0xFF
    data[148:156] = b" " * 8
    data[148:156] = f"{sum(data[:BLOCK]):06o}\0 ".encode()
    assert [m.name for m in scan(bytes(data))] == ["\\xff.txt"]


CUTS = sorted({cut for edge in range(0, len(tar_bytes(FILES)), BLOCK) for cut in (edge - 1, edge, edge + 1)} - {-1})


def test_scan_of_archive_cut_anywhere_reports_the_cut_and_keeps_what_precedes_it() -> None:
    whole = tar_bytes(FILES)
    complete = scan(whole)
    content_end = complete[-1].offset + complete[-1].size
    end_of_archive = content_end + -content_end % BLOCK + 2 * BLOCK
    assert len(CUTS) > 50
    for cut in CUTS:
        members, reason = scan_until_error(whole[:cut])
        expected = [m for m in complete if m.offset + m.size + -m.size % BLOCK <= cut]
        assert members == expected, cut
        if cut >= end_of_archive:
            assert reason is None
        elif cut == 0:
            assert reason == Reason.SHARD_EMPTY
        else:
            assert reason == (Reason.SHARD_NOT_TAR if cut < BLOCK else Reason.SHARD_TRUNCATED), cut


def test_scan_of_file_shorter_than_listed_is_truncated() -> None:
    data = tar_bytes(FILES)
    with pytest.raises(ShardError) as caught:
        list(scan_tar(io.BytesIO(data[: 3 * BLOCK]), len(data)))
    assert caught.value.reason == Reason.SHARD_TRUNCATED


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.SHARD_EMPTY),
        (bytes(10240), Reason.SHARD_EMPTY),
        (b"<html>404</html>" * 100, Reason.SHARD_NOT_TAR),
        (b"<html>404</html>", Reason.SHARD_NOT_TAR),
        (gzip.compress(tar_bytes(FILES)) * 4, Reason.SHARD_NOT_TAR),
        (tar_bytes(FILES) + tar_bytes(FILES), Reason.SHARD_TRAILING_DATA),
        (tar_bytes(FILES) + b"x", Reason.SHARD_TRAILING_DATA),
        (entry("a.txt") + bytes(BLOCK) + entry("b.txt") + END, Reason.SHARD_CORRUPT_HEADER),
        (entry("a.txt") + b"y" * BLOCK + END, Reason.SHARD_CORRUPT_HEADER),
        (entry("a.txt", size=2**33 - 1) + END, Reason.SHARD_TRUNCATED),
        (entry("a.txt", size_field=b"\x80" + (2**60).to_bytes(11, "big")) + END, Reason.SHARD_TRUNCATED),
        (entry("a.txt", size_field=b"\xff" * 12) + END, Reason.SHARD_CORRUPT_HEADER),
        (entry("a.txt", size_field=b"\x81" + bytes(11)) + END, Reason.SHARD_CORRUPT_HEADER),
        (entry("a.txt", size_field=b"0000x") + END, Reason.SHARD_CORRUPT_HEADER),
        (entry("a.txt", kind=b"S") + END, Reason.MEMBER_TYPE_FORBIDDEN),
        (entry("a", kind=b"Z", size_field=b"\x80" + (2**60).to_bytes(11, "big")) + END, Reason.MEMBER_TYPE_FORBIDDEN),
        (entry("a", kind=b"2", size=5, data=b"12345") + END, Reason.SHARD_CORRUPT_HEADER),
        (entry("p", kind=b"x", size=MAX_EXTENSION_BYTES + 1) + END, Reason.SHARD_CORRUPT_HEADER),
        (entry("p", kind=b"L", size=2**32) + END, Reason.SHARD_CORRUPT_HEADER),
        (entry("p", kind=b"x", size=4, data=b"9 a=") + entry("a.txt") + END, Reason.SHARD_CORRUPT_HEADER),
        (entry("p", kind=b"x", size=12, data=b"12 size=-10\n") + entry("a.txt") + END, Reason.SHARD_CORRUPT_HEADER),
        (entry("p", kind=b"g", size=10, data=b"10 path=x\n") + entry("a.txt") + END, Reason.SHARD_CORRUPT_HEADER),
        (
            entry("p", kind=b"x", size=22, data=b"22 GNU.sparse.major=1\n") + entry("a.txt") + END,
            Reason.MEMBER_TYPE_FORBIDDEN,
        ),
        (entry("a.txt") + entry("p", kind=b"x", size=10, data=b"10 path=x\n") + END, Reason.SHARD_CORRUPT_HEADER),
    ],
)
def test_scan_of_hostile_archive_is_refused(data: bytes, reason: Reason) -> None:
    error = expect(data, reason)
    assert str(error.reason) in reason.value
    assert ";" in str(error)


def test_scan_of_pax_size_overrides_the_header() -> None:
    record = entry("p", kind=b"x", size=9, data=b"9 size=3\n")
    members = scan(record + entry("a.txt", size=0, data=b"xyz") + END)
    assert [(m.name, m.data) for m in members] == [("a.txt", b"xyz")]


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_scan_of_link_directory_or_device_yields_it_without_content(kind: bytes) -> None:
    members = scan(entry("evil", kind=kind) + entry("a.txt", size=1, data=b"x") + END)
    assert [(m.name, m.is_regular, m.data) for m in members] == [("evil", False, None), ("a.txt", True, b"x")]


def test_scan_of_member_above_the_limit_is_passed_over_but_hashed() -> None:
    content = bytes(range(251)) * 5
    (member,) = scan(tar_bytes([("a.png", content)]), max_member_bytes=1000)
    assert member.data is None
    assert (member.size, member.crc32) == (len(content), zlib.crc32(content))


def test_scan_of_long_chain_of_extension_headers_reads_each_byte_once() -> None:
    reads = 0

    class Counting(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            nonlocal reads
            data = super().read(size)
            reads += len(data)
            return data

    data = entry("p", kind=b"L", size=1, data=b"n") * 2003 + entry("a.txt") + END
    assert len(list(scan_tar(Counting(data), len(data)))) == 1
    assert reads == len(data)


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, len(tar_bytes(FILES)) - 1), value=st.integers(1, 255))
def test_scan_of_archive_with_one_changed_byte_never_invents_members(position: int, value: int) -> None:
    data = bytearray(tar_bytes(FILES))
    data[position] ^= value
    members, reason = scan_until_error(bytes(data))
    original = scan(tar_bytes(FILES))
    header = position % BLOCK if any(m.offset - BLOCK <= position < m.offset for m in original) else None
    if header is not None and not 148 <= header < 156:
        assert reason is not None
        original = [m for m in original if m.offset <= position]
        original = original[: len(members)]
    assert [(m.name, m.offset, m.size) for m in members] == [(m.name, m.offset, m.size) for m in original][
        : len(members)
    ]


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=3 * BLOCK))
def test_scan_of_random_bytes_is_refused(data: bytes) -> None:
    _, reason = scan_until_error(data)
    assert reason is not None


def test_scan_of_folder_entries_of_all_writers_says_that_they_are_folders() -> None:
    volume, old, incremental = (
        entry("label", kind=b"V"),
        entry("f/", kind=b"0"),
        entry("g", kind=b"D", size=3, data=b"Yx\0"),
    )
    members = scan(volume + old + incremental + entry("f/a.txt", size=1, data=b"x") + END)
    assert [(member.name, member.is_directory, member.data) for member in members] == [
        ("label", True, None),
        ("f/", True, None),
        ("g", True, None),
        ("f/a.txt", False, b"x"),
    ]


def test_scan_of_pax_headers_with_large_attributes_reads_the_members() -> None:
    value = b"SCHILY.xattr.com.apple.ResourceFork=" + bytes(range(256)) * 1000
    record = f"{len(value) + 8} ".encode() + value + b"\n"
    for kind in (b"x", b"X"):
        members = scan(entry("p", kind=kind, size=len(record), data=record) + entry("a.txt", size=1, data=b"x") + END)
        assert [(member.name, member.data) for member in members] == [("a.txt", b"x")]
