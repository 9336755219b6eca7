"""Reading a request's body within its bounds, before anything looks at it."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from pipeline.serving.limits import Hold, Limits
from pipeline.serving.refusals import RefusedError


async def read_body(request: Request, limits: Limits, hold: Hold) -> bytes:
    """Return the JSON body of a request; `hold` counts its bytes.

    Raises:
        RefusedError: not declared as JSON (415), too large (413), too slow (408), or no memory is left for it (503).
        ClientDisconnect: the client went away.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RefusedError(415, "send the request with Content-Type: application/json", code="unsupported_media_type")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RefusedError(415, "send the body without Content-Encoding", code="unsupported_media_type")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limits.body_bytes:
        raise _too_large(limits)
    chunks: list[bytes] = []
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            async for chunk in request.stream():
                hold.take(len(chunk))
                if hold.num_bytes > limits.body_bytes:
                    raise _too_large(limits)
                chunks.append(chunk)
    except TimeoutError:
        message = f"the body did not arrive within {limits.body_timeout_s:.0f} s"
        raise RefusedError(408, message, code="request_timeout") from None
    return b"".join(chunks)


def _too_large(limits: Limits) -> RefusedError:
    most = limits.body_bytes >> 20
    return RefusedError(
        413, f"the body is larger than {most} MiB; send fewer or smaller images", code="request_too_large"
    )


async def until_gone(request: Request) -> None:
    """Wait until the client of a request, whose body was read, goes away."""
    try:
        while not await request.is_disconnected():
            await asyncio.sleep(0.2)
    except ClientDisconnect:
        return
