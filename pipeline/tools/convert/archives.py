"""Zip and tar archives of annotations, tables and pictures: unpacked below the output folder, then read as any folder.

Only regular files with names inside the archive are written, and checksums are compared. A tar file of WebDataset
samples is left as it is; its first members tell.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final, cast

from pipeline.errors import ShardError
from pipeline.index.grouping import split_name
from pipeline.shards.tar import scan_tar

_OPENERS: Final[dict[str, Callable[[str], object]]] = {
    ".tar.gz": gzip.open,
    ".tgz": gzip.open,
    ".tar.bz2": bz2.open,
    ".tbz2": bz2.open,
    ".tar.xz": lzma.open,
    ".txz": lzma.open,
}
UNREAD: Final = re.compile(r"\.(?:tar\.(?:zst|lz4)|tzst|7z|rar|z\d\d|zip\.\d+)$", re.IGNORECASE)
"""Archives that are not read: unpack them first."""
_TABLE: Final = re.compile(r"\.(?:parquet|arrow|csv|tsv|jsonl?\.gz|zip|tar|tgz|gz)$", re.IGNORECASE)
_PICTURE: Final = re.compile(r"(?:\d+\.)?(?:jpe?g|jpe|jfif|png|webp|bmp|tiff?|avif|gif|heic)")
_PASSED_OVER: Final = ("__MACOSX/", ".DS_Store", "Thumbs.db")
_TEXTS_ALONE: Final = 100
"""Samples without picture after which a tar file is taken for one of texts."""
_COPY_BYTES: Final = 4 * 1024 * 1024
_DAMAGE = (zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError, OSError, ShardError)


def is_archive(path: str) -> bool:
    """Whether a path names an archive that is unpacked, by its ending."""
    return path.casefold().endswith((".zip", *_OPENERS))


def holds_folder(path: str) -> bool:
    """Whether a tar file holds annotations or tables with a folder of pictures, rather than sample after sample."""
    texts_alone, pictures = 0, set[str]()
    with open(path, "rb") as file:
        try:
            for member in scan_tar(file, os.path.getsize(path)):
                key, extension = split_name(member.name)
                if _PICTURE.fullmatch(extension):
                    pictures.add(key)
                elif _TABLE.search(member.name):
                    return True
                elif key in pictures and extension in ("txt", "json"):
                    return False
                elif extension == "json" and _holds_many(member.name, member.data or b"["):
                    return True
                else:
                    texts_alone += extension in ("txt", "json")
                    if texts_alone >= _TEXTS_ALONE:
                        return False
        except ShardError:  # told by who reads it
            return False
    return False


def _holds_many(name: str, data: bytes) -> bool:
    """Whether a JSON file holds annotations of many samples: an array, lines, or COCO and VQA files."""
    text = data.lstrip()
    lines = [line for line in text.split(b"\n")[:3] if line.strip()]
    if name.casefold().endswith(".jsonl") and len(lines) > 1:
        return True
    many = (b'"annotations"', b'"questions"')
    return text.startswith(b"[") or any(word in text[:4096] for word in many) or _are_objects(lines)


def _are_objects(lines: list[bytes]) -> bool:
    return len(lines) > 1 and all(line.startswith(b"{") and line.rstrip().endswith(b"}") for line in lines)


def unpack(path: str, below: Path) -> Path:
    """Return the folder that holds the files of an archive, unpacked when it is not there yet.

    Args:
        path: the archive.
        below: folder for all of a conversion's archives.

    Raises:
        ValueError: a damaged archive, a name that leaves it, two files of one name, or too little room on the disk.
    """
    found = os.stat(path)
    state = hashlib.sha256(f"{os.path.basename(path)} {found.st_size} {found.st_mtime_ns}".encode()).hexdigest()[:12]
    target = below / f"{PurePosixPath(path).name}-{state}"
    if target.is_dir():
        return target
    part = below / f".{target.name}.tmp"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        written: set[str] = set()
        for name, size, content in _files(path, part):
            place = _write(path, part, name, size, content, written)
            if place is not None:
                os.utime(place, ns=(found.st_mtime_ns, found.st_mtime_ns))  # the same at every start
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(
            f"{path}: damaged or cut ({getattr(error, 'what', error)}); fetch or write the file again"
        ) from error
    except NotImplementedError as error:
        raise ValueError(f"{path}: packed in a way that is not read ({error}); unpack it first") from error
    os.replace(part, target)
    return target


def _files(path: str, part: Path) -> Iterator[tuple[str, int, BinaryIO]]:
    """Yield (name, size in bytes, content) of the regular files of an archive."""
    if path.casefold().endswith(".zip"):
        yield from _of_zip(path)
        return
    ending = next((one for one in _OPENERS if path.casefold().endswith(one)), None)
    plain = part / ".archive.tar" if ending else Path(path)
    if ending:
        with cast(BinaryIO, _OPENERS[ending](path)) as packed, open(plain, "wb") as file:
            shutil.copyfileobj(packed, file, _COPY_BYTES)
    if ending and not holds_folder(str(plain)):
        with open(plain, "rb") as file:  # shards that somebody compressed
            yield f"{PurePosixPath(path).name[: -len(ending)]}.tar", plain.stat().st_size, file
    else:
        with open(plain, "rb") as walked, open(plain, "rb") as file:
            for member in scan_tar(walked, plain.stat().st_size, max_member_bytes=0):
                if member.is_regular:
                    file.seek(member.offset)
                    yield member.name, member.size, file
                elif not member.is_directory:
                    raise ValueError(f"{path}: {member.name[:80]!a} is a link or device; unpack it first")
    if ending:
        plain.unlink()


def _of_zip(path: str) -> Iterator[tuple[str, int, BinaryIO]]:
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        for entry in entries:
            if entry.flag_bits & 1:
                raise ValueError(f"{path}: {entry.filename[:80]!a} is encrypted; unpack it first")
            if entry.external_attr >> 28 == 0xA:
                raise ValueError(f"{path}: {entry.filename[:80]!a} is a link; unpack it first")
            with archive.open(entry) as content:
                yield entry.filename, entry.file_size, cast(BinaryIO, content)


def _write(path: str, part: Path, name: str, size: int, content: BinaryIO, written: set[str]) -> Path | None:
    """Write one file of an archive; None for metadata of the system that packed it.

    Raises:
        ValueError: its name leaves the folder, was used before, or the disk has no room for it.
    """
    place = PurePosixPath(name.replace("\\", "/"))
    base = place.name
    if any(word in f"{place}" for word in _PASSED_OVER) or base.startswith("._"):
        _drain(content, size)
        return None
    if place.is_absolute() or ".." in place.parts or ":" in place.parts[0] or "\x00" in name:
        raise ValueError(f"{path}: {name[:80]!a} leaves the archive's own folder; unpack it with care")
    if str(place) in written:
        raise ValueError(f"{path}: two files named {name[:80]!a}; which one is meant cannot be told")
    written.add(str(place))
    free = shutil.disk_usage(part).free
    if size > free:
        raise ValueError(f"{path}: {name[:80]!a} takes {size} bytes, {free} are free in {part.parent}; make room there")
    (part / place).parent.mkdir(parents=True, exist_ok=True)
    with open(part / place, "xb") as file:
        left = size
        while left:
            chunk = content.read(min(left, _COPY_BYTES))
            if not chunk:
                raise EOFError(f"{name[:80]!a} ends early")
            file.write(chunk)
            left -= len(chunk)
        if isinstance(content, zipfile.ZipExtFile):
            content.read()  # compares the checksum
    return part / place


def _drain(content: BinaryIO, size: int) -> None:
    if isinstance(content, zipfile.ZipExtFile):
        return
    content.seek(content.tell() + size)
