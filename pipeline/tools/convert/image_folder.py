"""Image files in a folder, named by a path in it, relative or absolute."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import PurePosixPath
from urllib.parse import unquote

from pipeline.errors import DataError, Reason
from pipeline.samples.image_names import is_url
from pipeline.shards.tar import MAX_MEMBER_BYTES

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL)
_FILE_URL = re.compile(r"file://(?=/)", re.IGNORECASE)
_WINDOWS = re.compile(r"\\|(?:^|/)[a-z]:/", re.IGNORECASE)
_MAX_SHOWN_CHARS = 80


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
            raise _missing("an image file that is not in the image folder", name) from None
        raise
    size = found.st_size
    if not stat.S_ISREG(found.st_mode):
        raise _missing("an image name that is not a regular file", name)
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
    path = _plain_path(name)
    if is_url(path):
        raise DataError(Reason.REMOTE_IMAGE_FORBIDDEN, "an image is named by URL")
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        raise DataError(Reason.TEXT_INVALID_UNICODE, "a lone surrogate in an image name")
    if "\x00" in path or not _is_inside(path, folder):
        raise _missing("an image path that leaves the image folder", name)
    return os.path.join(folder, path)


def _plain_path(name: str) -> str:
    """Return the path in a file URL without host, else the name; an absolute one without `..`."""
    is_file_url = _FILE_URL.match(name)
    path = unquote(name[is_file_url.end() :]) if is_file_url else name
    return os.path.normpath(path) if path.startswith("/") else path


def _is_inside(path: str, folder: str) -> bool:
    if path.startswith("/"):
        return PurePosixPath(path).is_relative_to(os.path.abspath(folder))
    return ".." not in PurePosixPath(path).parts


def _missing(what: str, name: str) -> DataError:
    if _WINDOWS.search(name):
        what = "a Windows path, expected one in the image folder, with `/` between its parts"
    return DataError(Reason.MISSING_IMAGE, f"{what}: {name[:_MAX_SHOWN_CHARS]!a}")
