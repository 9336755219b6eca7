"""What the bytes of a film file say before a decoder sees them: its container, and whether it is cut.

Layouts: ISO 14496-12 (boxes), RFC 8794 (EBML), RIFF.
"""

from __future__ import annotations

from typing import Final

from pipeline.errors import DataError, Reason
from pipeline.samples.image_bytes import boxes_are_cut, image_format, is_heif

FILM_EXTENSIONS: Final = ("mp4", "webm", "mov", "mkv", "avi", "m4v")
_EBML: Final = b"\x1aE\xdf\xa3"
_SEGMENT: Final = b"\x18S\x80g"
_CLUSTER: Final = b"\x1fC\xb6u"
_OLD_QUICKTIME: Final = (b"moov", b"mdat", b"wide", b"free", b"skip")


def is_film(data: bytes) -> bool:
    """Whether a file begins like a film of one of the known containers."""
    if data[4:8] == b"ftyp":
        return image_format(data) is None and not is_heif(data)
    is_avi = data[:4] == b"RIFF" and data[8:12] == b"AVI "
    return is_avi or data[:4] == _EBML or (data[4:8] in _OLD_QUICKTIME and image_format(data) is None)


def film_extension(data: bytes) -> str:
    """Return the ending under which a film is stored, by its content.

    Raises:
        DataError: no film of a known container.
    """
    if not is_film(data):
        raise DataError(Reason.VIDEO_UNSUPPORTED_FORMAT, f"{len(data)} bytes of no known film")
    if data[:4] == b"RIFF":
        return "avi"
    if data[:4] == _EBML:
        return "webm" if b"webm" in data[:64] else "mkv"
    return "mp4" if data[4:8] == b"ftyp" and data[8:12] != b"qt  " else "mov"


def is_cut_film(data: bytes) -> bool:
    """Whether a container declares more bytes than the file has."""
    if data[:4] == b"RIFF":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if data[:4] == _EBML:
        return _is_cut_ebml(data)
    return boxes_are_cut(data)


def _is_cut_ebml(data: bytes) -> bool:
    """Whether the segment, or the last cluster in it, is longer than the file."""
    at = data.find(_SEGMENT, 0, 4096)
    if at < 0:
        return len(data) < 4096
    start, size = _ebml_size(data, at + len(_SEGMENT))
    if size is not None:
        return start + size > len(data)
    last = data.rfind(_CLUSTER)
    start, size = _ebml_size(data, last + len(_CLUSTER)) if last >= 0 else (0, None)
    return size is not None and start + size > len(data)


def _ebml_size(data: bytes, at: int) -> tuple[int, int | None]:
    """Return where an element's content begins, and its length; None where it is left open, as in live streams."""
    if at >= len(data) or not data[at]:
        return at, None
    length = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + length], "big") & ((1 << 7 * length) - 1)
    return at + length, None if value == (1 << 7 * length) - 1 else value
