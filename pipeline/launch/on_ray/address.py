"""Whether anything listens where RAY_ADDRESS points, asked by TCP: Ray itself waits for minutes. Imports no ray."""

from __future__ import annotations

import socket
from typing import NamedTuple
from urllib.parse import urlsplit

_TIMEOUT_S = 5.0


class Endpoint(NamedTuple):
    """A TCP address."""

    host: str
    port: int


def endpoint(address: str) -> Endpoint | None:
    """Return host and port of `HOST:PORT` or `ray://HOST:PORT`; None for `auto`, `local`, and what names none."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        port = parts.port
    except ValueError:  # not a number; Ray's own message says so at once
        return None
    return Endpoint(parts.hostname, port) if parts.hostname and port is not None else None


def check_listens(address: str, timeout_s: float = _TIMEOUT_S) -> None:
    """Connect to a Ray address, if it names a host and a port, and hang up.

    Raises:
        ConnectionError: nothing listens there, or nothing answered in time.
    """
    target = endpoint(address)
    if target is None:
        return
    try:
        socket.create_connection(target, timeout_s).close()
    except OSError as error:
        raise ConnectionError(
            f"RAY_ADDRESS {address}: nothing answers there ({error}). Start the cluster's head node, correct the "
            "address, or unset RAY_ADDRESS to start Ray on this machine"
        ) from error
