"""Fetching images from the hosts that an operator named; no other server is ever called."""

from __future__ import annotations

import aiohttp

from pipeline.serving.limits import Hold, Limits
from pipeline.serving.refusals import RefusedError, invalid
from pipeline.serving.wire.conversation import ImagePlace
from pipeline.serving.wire.images import allowed_host

_TIMEOUT_S = 20.0
_CHUNK_BYTES = 64 << 10


async def fetch_image(place: ImagePlace, hosts: frozenset[str], limits: Limits, hold: Hold) -> bytes:
    """Return the bytes at an address; redirects are not followed, since they could lead to any host.

    Raises:
        RefusedError: the host is not allowed, does not answer, or sends more than a request body may hold.
    """
    url = allowed_host(place.url, hosts, place.param)
    data = bytearray()
    try:
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise invalid(f"the host answered with {response.status}", place.param, "image_not_fetched")
            async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                hold.take(len(chunk))
                data += chunk
                if len(data) > limits.body_bytes:
                    raise RefusedError(413, "the image is too large", param=place.param, code="request_too_large")
    except (aiohttp.ClientError, TimeoutError):
        raise invalid("the image could not be fetched from there", place.param, "image_not_fetched") from None
    return bytes(data)
