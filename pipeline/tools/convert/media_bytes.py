"""From a place of media to its bytes: a file of the image folder, bytes as they are, base64, a data URI, or numbers."""

from __future__ import annotations

import base64
import binascii
import re

from pipeline.errors import DataError, Reason
from pipeline.samples.film_bytes import film_extension, is_film
from pipeline.samples.image_bytes import EXTENSIONS, describe_other, image_format
from pipeline.shards.tar import MAX_MEMBER_BYTES
from pipeline.tools.convert.image_folder import image_size_bytes, read_image_file
from pipeline.tools.convert.row_media import Found, is_file_name

_URL_SAFE = str.maketrans("-_", "+/")
_DATA_URI = re.compile(r"\s*data:[\w.+-]+/[\w.+-]+(?:;[\w=.+-]+)*;base64,", re.IGNORECASE)


def media_extension(data: bytes) -> str:
    """Return the extension under which a picture or film is stored, by content: names of crawled files are often wrong.

    Raises:
        DataError: a format that is not read.
    """
    found = image_format(data)
    if found is None and is_film(data):
        return film_extension(data)
    if found is None:
        what = describe_other(data) if data else "an empty file"
        raise DataError(Reason.IMAGE_UNSUPPORTED_FORMAT, f"{what}, not {', '.join(EXTENSIONS)}")
    return EXTENSIONS[found]


def media_size(found: Found, folder: str | None) -> int:
    """Return how many bytes a place holds, without reading a file.

    Raises:
        DataError: as `media_bytes`.
    """
    if is_file_name(found.value):
        return image_size_bytes(_folder(found, folder), found.value)
    return len(media_bytes(found, folder))


def media_bytes(found: Found, folder: str | None) -> bytes:
    """Return the content of a place.

    Args:
        found: a picture of a row.
        folder: where relative file names begin; None where a source holds its pictures itself.

    Raises:
        DataError: there is no such file, it is a URL, or text that is not base64.
        OSError: the file exists and cannot be read.
    """
    value = found.value
    if isinstance(value, bytes):
        data = value
    elif isinstance(value, list | tuple):
        data = _numbers(found)
    elif is_file_name(value):
        return read_image_file(_folder(found, folder), value)
    else:
        data = _decoded(found)
    if len(data) > MAX_MEMBER_BYTES:
        raise DataError(Reason.MEMBER_TOO_LARGE, f"field `{found.field}` holds {len(data)} bytes")
    return data


def _folder(found: Found, folder: str | None) -> str:
    if folder is None:
        raise DataError(
            Reason.MISSING_IMAGE,
            f"field `{found.field}` names a file instead of holding its bytes; pass the folder with --images",
        )
    return folder


def _numbers(found: Found) -> bytes:
    try:
        return bytes(found.value)
    except (TypeError, ValueError):
        raise DataError(Reason.IMAGE_CORRUPT, f"field `{found.field}` holds numbers that are not all bytes") from None


def _decoded(found: Found) -> bytes:
    text = _DATA_URI.sub("", found.value, count=1)
    try:
        return base64.b64decode(re.sub(r"\s+", "", text).translate(_URL_SAFE), validate=True)
    except (binascii.Error, ValueError):
        raise DataError(Reason.IMAGE_CORRUPT, f"field `{found.field}` holds text that is not base64") from None
