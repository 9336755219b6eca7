"""The images of a request: from their addresses to the bytes of files that may be decoded.

An image travels inside the request as a data URL. A server fetches from other machines only where its operator named
their hosts: a request could otherwise make it call addresses inside its own network. Format and number of pixels are
read from each header here, so that a file that unfolds to gigabytes never reaches a decoder.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from pipeline.errors import DataError
from pipeline.samples.image import ImageLimits, probe_image
from pipeline.serving.refusals import RefusedError, invalid

Fetch = Callable[[str], Awaitable[bytes]]
"""Fetches an http(s) address whose host is allowed."""

_DATA_URL = re.compile(r"data:(?P<kind>[\w.+-]+/[\w.+-]+)?(?P<options>(?:;[\w.=+-]+)*?)(?P<base64>;base64)?,", re.ASCII)
_LONGEST_HEAD = 256


def read_data_url(url: str, param: str) -> bytes:
    """Return the bytes in a base64 data URL.

    Raises:
        RefusedError: it is another kind of URL, or its base64 is not complete.
    """
    head, comma, payload = url.partition(",")
    found = _DATA_URL.fullmatch(head + comma) if len(head) < _LONGEST_HEAD else None
    if found is None or not found["base64"]:
        raise invalid("expected data:image/TYPE;base64,DATA", param, "invalid_image_url")
    if not (found["kind"] or "").lower().startswith("image/"):
        raise invalid("the data URL is not of an image; expected data:image/TYPE;base64,DATA", param, "invalid_image")
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        raise invalid("the base64 data is cut or has other letters in it", param, "invalid_base64") from None


def check_image(data: bytes, limits: ImageLimits, param: str) -> bytes:
    """Return an image file whose header is within the limits.

    Raises:
        RefusedError: it is not one of the formats that can be read, is broken, or has too many pixels.
    """
    try:
        probe_image(data, limits)
    except DataError as error:
        raise image_refusal(error, param) from None
    return data


def image_refusal(error: DataError, param: str | None = None) -> RefusedError:
    """Return the refusal of a request with an image, or a conversation, that cannot be used."""
    return invalid(error.what, param, str(error.reason))


def allowed_host(url: str, hosts: frozenset[str], param: str) -> str:
    """Return an http(s) address whose host may be called.

    Raises:
        RefusedError: it is another scheme, or its host is not on the list.
    """
    try:
        parts = urlsplit(url)
        host, has_user = parts.hostname or "", parts.username is not None
        port = parts.port
    except ValueError:
        raise invalid("this is not an address", param, "invalid_image_url") from None
    if parts.scheme not in ("http", "https") or not host or has_user:
        raise invalid("expected a data URL: data:image/TYPE;base64,DATA", param, "invalid_image_url")
    name = host if port is None else f"{host}:{port}"
    if name not in hosts:
        raise invalid(
            "this server does not fetch images from that host; send the image as data:image/TYPE;base64,DATA",
            param,
            "host_not_allowed",
        )
    return url
