"""Images that lie as files in a folder and are named by relative path."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import PurePosixPath

from pipeline.errors import DataError, Reason
from pipeline.shards.tar import MAX_MEMBER_BYTES

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL)
_REMOTE = re.compile(r"\s*(?:[a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)


def image_extension(data: bytes) -> str:
    """Return `jpg`, `png` or `webp` by content: names of crawled files lie.

    Raises:
        DataError: none of these.
    """
    if data[:3] == b"\xff\xd8\xff":
        return "jpg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    raise DataError(Reason.IMAGE_UNSUPPORTED_FORMAT, f"{len(data)} bytes, not JPEG, PNG or WebP")


def image_size_bytes(folder: str, name: str) -> int:
    """Return the size of an image file.

    Raises:
        DataError: a URL, a path that leaves the folder, no such file, no Unicode, or a file above the member limit.
    """
    path = _locate(folder, name)
    try:
        found = os.stat(path)
    except OSError as error:
        if error.errno in _ABSENT:
            raise DataError(Reason.MISSING_IMAGE, "an image file that is not in the image folder") from None
        raise
    size = found.st_size
    if not stat.S_ISREG(found.st_mode):
        raise DataError(Reason.MISSING_IMAGE, "an image name that is no regular file")
    if size > MAX_MEMBER_BYTES:
        raise DataError(Reason.MEMBER_TOO_LARGE, f"an image file of {size} bytes")
    return size


def read_image_file(folder: str, name: str) -> bytes:
    """Return the content of an image file.

    Raises:
        DataError: as `image_size_bytes`.
        OSError: the file exists and cannot be read.
    """
    image_size_bytes(folder, name)
    with open(_locate(folder, name), "rb") as file:
        return file.read()


def _locate(folder: str, name: str) -> str:
    if _REMOTE.match(name):
        raise DataError(Reason.REMOTE_IMAGE_FORBIDDEN, "an image is named by URL")
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        raise DataError(Reason.TEXT_INVALID_UNICODE, "a lone surrogate in an image name")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\x00" in name:
        raise DataError(Reason.MISSING_IMAGE, "an image path that leaves the image folder")
    return os.path.join(folder, name)
