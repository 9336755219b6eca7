"""Strict streaming tar reader: yields regular files with their byte offsets and never extracts anything.

What `tarfile` tolerates (a cut archive, a damaged header in the middle, data after the end) is an error here, because a
training set that shrinks silently is worse than a job that stops. Reads every byte once; holds one member in memory.
Format: POSIX.1-2017 pax interchange format and the GNU tar manual (long names, base-256 numbers).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from pipeline.errors import Reason, ShardError

BLOCK = 512
MAX_EXTENSION_BYTES = 1024 * 1024
"""Largest PAX or GNU long-name record: real ones hold a path and attributes of macOS, hostile ones memory."""
MAX_MEMBER_BYTES = 64 * 1024 * 1024
"""Members above this are passed over without being held in memory."""
_SKIP_BYTES = 1024 * 1024
_REGULAR = frozenset(b"\x0007")
_WITHOUT_DATA = frozenset(b"123456V")
_NAMES_ONLY = frozenset(b"5V")
_EXTENSIONS = frozenset(b"xXgLK")
"""Headers about the next member; `X` is what Solaris wrote before the format was standardized."""


class Readable(Protocol):
    """A binary stream read from start to end."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes; fewer only at the end."""
        ...


class TarMember(NamedTuple):
    """One archive member."""

    name: str
    """Opaque label as stored; bytes that are not UTF-8 appear as backslash escapes. Never used as a path."""
    offset: int
    """Byte offset of the content in the shard."""
    size: int
    """Bytes of content."""
    crc32: int
    """CRC-32 of the content."""
    data: bytes | None
    """The content; None when larger than the member limit or when the member is not a regular file."""
    is_regular: bool
    """False for links, directories and devices, which have no content and are never followed."""
    is_directory: bool = False
    """Whether the member only names a folder, or the archive itself (`tar -V`)."""


@dataclass
class _Overrides:
    """What extension headers say about the next member."""

    name: str | None = None
    size: int | None = None


def scan_tar(file: Readable, size_bytes: int, *, max_member_bytes: int = MAX_MEMBER_BYTES) -> Iterator[TarMember]:
    """Yield the members of a tar archive in order.

    Args:
        file: stream positioned at byte 0; the caller may hash what passes through it.
        size_bytes: size of the whole file, so that a member that claims more is refused before anything is read.
        max_member_bytes: larger members are yielded without content.

    Raises:
        ShardError: at the first byte that is not as it must be; members yielded before it are intact.
    """
    reader = _Blocks(file, size_bytes)
    overrides = _Overrides()
    while (header := reader.next_header()) is not None:
        kind, size = header[156], _number(header[124:136], reader.header_offset)
        if kind in _EXTENSIONS:
            _read_extension(reader, kind, size, overrides)
            continue
        size = size if overrides.size is None else overrides.size
        name = _name(header) if overrides.name is None else overrides.name
        overrides = _Overrides()
        yield _read_member(reader, kind, name, size, max_member_bytes)
    if overrides != _Overrides():
        raise _corrupt(reader.header_offset, "the archive ends after an extension header")
    reader.expect_only_zeros()


class _Blocks:
    """Position in the stream, with every read checked against the size of the file."""

    def __init__(self, file: Readable, size_bytes: int) -> None:
        self._file, self._size = file, size_bytes
        self.offset = 0
        self.header_offset = 0

    def next_header(self) -> bytes | None:
        """Return the next header block, or None at a proper end of archive."""
        if self._size == 0:
            raise ShardError(Reason.SHARD_EMPTY, "the file has 0 bytes")
        self.header_offset = self.offset
        block = self._header_block("a member header or the end-of-archive marker")
        if any(block):
            _verify_checksum(block, self.header_offset)
            return block
        if any(self._header_block("the second zero block of the end-of-archive marker")):
            raise _corrupt(self.header_offset, "one zero block between members")
        if self.header_offset == 0:
            raise ShardError(Reason.SHARD_EMPTY, f"{self._size} bytes, but no member before the end-of-archive marker")
        return None

    def content(self, size: int, what: str) -> bytes:
        """Return `size` bytes of content and pass over the padding."""
        self._check_fits(size, what)
        data = self._take(size, what)
        self._take_padding(size, what)
        return data

    def skip(self, size: int, what: str) -> int:
        """Pass over content and padding; return the CRC-32 of the content."""
        self._check_fits(size, what)
        crc, left = 0, size
        while left:
            chunk = self._take(min(left, _SKIP_BYTES), what)
            crc, left = zlib.crc32(chunk, crc), left - len(chunk)
        self._take_padding(size, what)
        return crc

    def expect_only_zeros(self) -> None:
        """Read to the end of the file, which may hold nothing but record padding."""
        while chunk := self._file.read(_SKIP_BYTES):
            if any(chunk):
                where = self.offset + next(idx for idx, byte in enumerate(chunk) if byte)
                raise ShardError(
                    Reason.SHARD_TRAILING_DATA, f"the archive ended, but byte {where} of {self._size} is not zero"
                )
            self.offset += len(chunk)
        if self.offset != self._size:
            raise _truncated(self.offset, f"the file was listed with {self._size} bytes")

    def _header_block(self, what: str) -> bytes:
        left = self._size - self.offset
        if left < BLOCK:
            if self.offset == 0:
                raise ShardError(Reason.SHARD_NOT_TAR, f"{self._size} bytes, less than one tar header of {BLOCK}")
            raise _truncated(self._size, f"expected {what}")
        return self._take(BLOCK, what)

    def _check_fits(self, size: int, what: str) -> None:
        left = self._size - self.offset
        if size > left:
            raise _truncated(self._size, f"{what} has {size} bytes, only {left} are left")

    def _take_padding(self, size: int, what: str) -> None:
        self._take(-size % BLOCK, f"the padding of {what}")

    def _take(self, size: int, what: str) -> bytes:
        data = self._file.read(size) if size else b""
        self.offset += len(data)
        if len(data) != size:
            raise _truncated(self.offset, f"expected {size} bytes of {what}")
        return data


def _read_member(reader: _Blocks, kind: int, name: str, size: int, max_member_bytes: int) -> TarMember:
    what = f"member at byte {reader.header_offset}"
    if kind in _WITHOUT_DATA:
        if size:
            raise _corrupt(reader.header_offset, f"a member of type {chr(kind)!r} claims {size} bytes of content")
        return TarMember(name, reader.offset, 0, 0, None, False, kind in _NAMES_ONLY)
    if kind == ord("D"):  # `tar --incremental`: a directory with a list of its files
        offset = reader.offset
        return TarMember(name, offset, size, reader.skip(size, what), None, False, True)
    if kind not in _REGULAR:
        # the layout of unknown types is unknown (sparse files have extra headers), so nothing after it can be trusted
        raise ShardError(
            Reason.MEMBER_TYPE_FORBIDDEN, f"type {chr(kind)!a} in the header at byte {reader.header_offset}"
        )
    offset = reader.offset
    if size > max_member_bytes:
        return TarMember(name, offset, size, reader.skip(size, what), None, True)
    data = reader.content(size, what)
    if name.endswith("/") and not data:  # how archives before POSIX name a folder
        return TarMember(name, offset, 0, 0, None, False, True)
    return TarMember(name, offset, size, zlib.crc32(data), data, True)


def _read_extension(reader: _Blocks, kind: int, size: int, overrides: _Overrides) -> None:
    where = reader.header_offset
    if size > MAX_EXTENSION_BYTES:
        raise _corrupt(where, f"an extension header of {size} bytes, more than {MAX_EXTENSION_BYTES}")
    data = reader.content(size, f"extension header at byte {where}")
    if kind == ord("L"):
        overrides.name = _decode(data.rstrip(b"\x00"))
    elif kind in b"xXg":
        records = _pax_records(data, where)
        if any(key.startswith("GNU.sparse") for key in records):
            raise ShardError(Reason.MEMBER_TYPE_FORBIDDEN, f"a sparse file at byte {where}")
        if kind == ord("g"):
            if records.keys() & {"path", "size"}:
                raise _corrupt(where, "a global header that renames or resizes every member")
            return
        overrides.name = _decode(records["path"]) if "path" in records else overrides.name
        if "size" in records:
            if not records["size"].isdigit() or len(records["size"]) > 19:
                raise _corrupt(where, "a PAX size that is not a number")
            overrides.size = int(records["size"])


def _pax_records(data: bytes, where: int) -> dict[str, bytes]:
    """Parse records of the form `LENGTH KEY=VALUE` and a line feed."""
    records: dict[str, bytes] = {}
    position = 0
    while position < len(data):
        digits, separator, _ = data[position : position + 8].partition(b" ")
        length = int(digits) if separator and digits.isdigit() else 0
        record = data[position : position + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if length <= len(digits) + 1 or len(record) != length or record[-1:] != b"\n" or not equals:
            raise _corrupt(where, "a malformed PAX record")
        records[_decode(key)] = value
        position += length
    return records


def _verify_checksum(block: bytes, offset: int) -> None:
    """The sum of all header bytes, the checksum field itself counted as spaces; old writers summed signed bytes."""
    digits = block[148:156].strip(b" \x00")
    stored = int(digits, 8) if digits and all(digit in b"01234567" for digit in digits) else -1
    rest = block[:148] + b" " * 8 + block[156:]
    unsigned = sum(rest)
    if stored in (unsigned, unsigned - 256 * sum(byte > 127 for byte in rest)):
        return
    if offset == 0:
        hint = " (it is gzip-compressed)" if block[:2] == b"\x1f\x8b" else ""
        raise ShardError(Reason.SHARD_NOT_TAR, f"the first 512 bytes are not a tar header{hint}")
    raise _corrupt(offset, "the header checksum does not match")


def _number(field: bytes, offset: int) -> int:
    """Parse an octal or base-256 size; negative and malformed ones are refused."""
    if field[0] & 0x80:
        if field[0] != 0x80:
            raise _corrupt(offset, "a negative or oversized member size")
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \x00")
    if not all(digit in b"01234567" for digit in digits):
        raise _corrupt(offset, "a member size that is not an octal number")
    return int(digits, 8) if digits else 0


def _name(header: bytes) -> str:
    name = header[:100].split(b"\x00", 1)[0]
    if header[257:263] == b"ustar\x00":
        prefix = header[345:500].split(b"\x00", 1)[0]
        name = prefix + b"/" + name if prefix else name
    return _decode(name)


def _decode(name: bytes) -> str:
    return name.decode("utf-8", errors="backslashreplace")


def _corrupt(offset: int, what: str) -> ShardError:
    return ShardError(Reason.SHARD_CORRUPT_HEADER, f"header at byte {offset}: {what}")


def _truncated(offset: int, what: str) -> ShardError:
    return ShardError(Reason.SHARD_TRUNCATED, f"the file ends at byte {offset}: {what}")
