"""The HTTP server around the application: bounds on headers, nothing told about itself, signals left to others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

_HEADER_BYTES = 64 << 10
_KEEP_ALIVE_S = 30
_LAST_WORDS_S = 3
"""After the answers under way have ended, time for their last bytes."""


def build_http_server(app: ASGIApp) -> uvicorn.Server:
    """Return a server that listens once `serve` is called with sockets."""
    return _Server(
        uvicorn.Config(
            app,
            http="h11",  # it bounds the headers of a request, the faster parser does not
            h11_max_incomplete_event_size=_HEADER_BYTES,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_LAST_WORDS_S,
        )
    )


class _Server(uvicorn.Server):
    """Installs no signal handlers."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals as they are."""
        yield
