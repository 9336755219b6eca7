"""Who may call: checks that come before any route, as a layer around the application.

A server on the loopback address is reachable by every web page that a user of the machine has open. Host and origin of
a request tell those apart: pages of other sites name themselves, and names that were made to point here are unknown.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.serving.options import is_loopback
from pipeline.serving.refusals import RefusedError

_SAFE_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


class AccessCheck:
    """Refuses requests of other sites' pages, for unknown host names, or without the key."""

    def __init__(self, app: ASGIApp, host: str, api_key: str | None, open_paths: Sequence[str]) -> None:
        """Wrap an application.

        Args:
            app: gets the requests that pass.
            host: that the server listens on.
            api_key: that a request must carry; None for no check.
            open_paths: need no key.
        """
        self._app, self._only_local = app, is_loopback(host)
        self._api_key = None if api_key is None else api_key.encode()
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse one request."""
        if scope["type"] != "http":
            return

        async def send_safely(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_SAFE_HEADERS]
            await send(message)

        try:
            self._check(scope)
        except RefusedError as error:
            await refusal_response(error)(scope, receive, send_safely)
            return
        await self._app(scope, receive, send_safely)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._only_local and not is_loopback(_host_name(host)):
            raise RefusedError(403, "this server answers under its loopback address only", code="host_not_allowed")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise RefusedError(403, "pages of other sites may not use this server", code="origin_not_allowed")
        if self._api_key is None or scope["path"] in self._open_paths:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), self._api_key):
            raise RefusedError(401, "send the server's key as `Authorization: Bearer KEY`", code="invalid_api_key")


def refusal_response(error: RefusedError) -> JSONResponse:
    """Return the response of a refusal."""
    return JSONResponse(error.body, error.status, headers=error.headers)


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
