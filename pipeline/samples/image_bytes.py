"""What the bytes of an image file say about it before and after a decoder failed: its format, and whether it is cut.

Only walks the containers; pixels are left to `pipeline.samples.image`. Layouts: PNG specification 5.3 (chunks), JPEG
(ITU-T T.81) annex B (marker segments), RIFF, ISO 14496-12 (boxes), BITMAPFILEHEADER.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "TIFF": "tif", "AVIF": "avif"}
"""Formats that are read, and the extension under which a converter stores them."""
_PNG_METADATA = frozenset((b"tEXt", b"zTXt", b"iTXt", b"iCCP"))
_STANDALONE_MARKERS = frozenset((0x01, *range(0xD0, 0xD9)))
_TIFF_MAGICS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"GIF8", "a GIF file"),
    (b"\xff\x0a", "a JPEG XL file"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL file"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 file"),
    (b"8BPS", "a Photoshop file"),
    (b"%PDF", "a PDF file"),
    (b"%!PS", "a PostScript file"),
    (b"\x1f\x8b", "gzip data"),
    (b"PK\x03\x04", "a zip file"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM film"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
)
_MARKUP = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(\w*)", re.IGNORECASE)


class _Chunk(NamedTuple):
    kind: bytes
    start: int
    end: int
    """Beyond the data when the file is cut."""


def image_format(data: bytes) -> str | None:
    """Return which of the formats in `EXTENSIONS` a file begins like; names of crawled files are often wrong.

    A damaged beginning can still be recognised: by the first chunk of a PNG, or markers near the start of a JPEG.
    """
    if data[:2] == b"\xff\xd8" or b"JFIF\0" in data[:16] or b"Exif\0\0" in data[:16]:
        return "JPEG"
    if data[:8] == PNG_MAGIC or b"IHDR" in data[:20]:
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:4] in _TIFF_MAGICS:
        return "TIFF"
    if data[4:8] == b"ftyp" and any(brand in _AVIF_BRANDS for brand in _brands(data)):
        return "AVIF"
    # two letters may begin any text: the size of the information header tells
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in (12, 16, 40, 52, 56, 64, 108, 124):
        return "BMP"
    return None


def describe_other(data: bytes) -> str:
    """Return what a file that is none of `EXTENSIONS` seems to be."""
    if data[4:8] == b"ftyp":
        return "a HEIC file" if is_heif(data) else "an MP4 film"
    for magic, what in _OTHERS:
        if data.startswith(magic):
            return what
    if markup := _MARKUP.match(data):
        return "an SVG file" if markup[1].lower() == b"svg" else "an HTML or XML page"
    return f"{len(data)} bytes of no known format"


def is_heif(data: bytes) -> bool:
    """Whether an ISO file holds pictures of HEIF, as phones take them, rather than a film."""
    return any(brand in _HEIF_BRANDS for brand in _brands(data))


def is_cut(data: bytes) -> bool:
    """Whether the container of an image declares more bytes than the file has, and is valid up to its end."""
    found = image_format(data)
    if found == "PNG":
        *_, last = [_Chunk(b"", 8, 8), *_png_chunks(data)]
        return last.kind != b"IEND" or last.end > len(data)
    if found == "JPEG":
        return _is_cut_jpeg(data)
    if found == "WEBP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if found == "BMP":
        return int.from_bytes(data[2:6], "little") > len(data)
    if found == "AVIF":
        return boxes_are_cut(data)
    return False


def without_png_metadata(data: bytes) -> bytes:
    """Return a PNG without texts and colour profile, which no pixel depends on here."""
    kept, at = [data[:8]], 8
    for chunk in _png_chunks(data):
        at = min(chunk.end, len(data))
        if chunk.kind not in _PNG_METADATA:
            kept.append(data[chunk.start : at])
    return b"".join([*kept, data[at:]])


def _png_chunks(data: bytes) -> Iterator[_Chunk]:
    """Yield the chunks up to IEND, or up to the one that the end of the file cuts or that has no proper name."""
    at = len(PNG_MAGIC)
    while at < len(data):
        kind = data[at + 4 : at + 8]
        if len(kind) == 4 and not kind.isalpha():
            yield _Chunk(b"IEND", at, at)  # damaged rather than cut: nothing behind it can be told apart
            return
        end = at + 12 + int.from_bytes(data[at : at + 4], "big") if len(kind) == 4 else len(data) + 1
        yield _Chunk(kind, at, end)
        if kind == b"IEND":
            return
        at = end


def _is_cut_jpeg(data: bytes) -> bool:
    """Whether the file ends in a segment, or its pixels have no end-of-image marker."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return False  # no marker where one must be: damaged
        marker = data[at + 1]
        if marker == 0xFF or marker in _STANDALONE_MARKERS:
            at += 1 if marker == 0xFF else 2
            continue
        if marker == 0xDA:
            return b"\xff\xd9" not in data[at:]
        if marker == 0xD9:
            return False
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return True


def boxes_are_cut(data: bytes) -> bool:
    """Whether the last of the boxes at the top of an ISO file is longer than the file."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size == 0:  # up to the end of the file
            return False
        if size < 8:
            return False
        at += size
    return at > len(data) or at < len(data)


def _brands(data: bytes) -> list[bytes]:
    end = min(int.from_bytes(data[:4], "big"), len(data), 256)
    return [data[8:12], *(data[at : at + 4] for at in range(16, end - 3, 4))]
