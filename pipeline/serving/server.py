"""A server from its options to its end: the address, the models, the signals."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from pipeline.config import ConfigError
from pipeline.serving.app import ChatServer
from pipeline.serving.backend import Backend
from pipeline.serving.http_server import build_http_server
from pipeline.serving.options import ServeOptions
from pipeline.serving.page.routes import ChatPage


def serve_models(options: ServeOptions, on_ready: Callable[[str], None]) -> None:
    """Serve until a signal comes; answers under way may end within `options.grace_s`.

    Args:
        options: what to serve, and where.
        on_ready: gets the address as soon as requests are answered.

    Raises:
        ConfigError: the address is taken, or a model cannot be opened.
    """
    from pipeline.serving.deployment import deployed  # only here: the chat page needs no Ray

    with bound(options.host, options.port) as listener, deployed(options) as backend:
        listen(options, backend, listener, on_ready)


def listen(
    options: ServeOptions,
    backend: Backend,
    listener: socket.socket,
    on_ready: Callable[[str], None],
    page: ChatPage | None = None,
) -> None:
    """Answer requests until a signal comes.

    Args:
        options: names, bounds and the key.
        backend: holds the models.
        listener: of `bound`.
        on_ready: gets the address as soon as requests are answered.
        page: the chat page, if there is to be one.
    """
    port = listener.getsockname()[1]
    host = f"[{options.host}]" if ":" in options.host else options.host
    asyncio.run(_listen(options, backend, listener, page, lambda: on_ready(f"http://{host}:{port}")))


async def _listen(
    options: ServeOptions,
    backend: Backend,
    listener: socket.socket,
    page: ChatPage | None,
    on_ready: Callable[[], None],
) -> None:
    chat = ChatServer(options, backend, page)
    server = build_http_server(chat.app)
    loop = asyncio.get_running_loop()
    closing: list[asyncio.Task[None]] = []

    def stop() -> None:
        if closing:  # a second signal: at once
            server.force_exit = server.should_exit = True
            return
        closing.append(loop.create_task(_close(chat, server, options.grace_s)))

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(signum, stop)
    ready = loop.create_task(_announce(server, on_ready))
    await server.serve(sockets=[listener])
    ready.cancel()


async def _close(chat: ChatServer, server: uvicorn.Server, grace_s: float) -> None:
    """Refuse what is new, let what is under way end, and end the server."""
    chat.admission.is_closed = True
    loop = asyncio.get_running_loop()
    deadline = loop.time() + grace_s
    while chat.admission.num_requests and loop.time() < deadline:
        await asyncio.sleep(0.05)
    chat.ending.set()
    server.should_exit = True


async def _announce(server: uvicorn.Server, on_ready: Callable[[], None]) -> None:
    while not server.started:
        await asyncio.sleep(0.01)
    on_ready()


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """Reserve the address before the models are opened; nothing is answered there yet.

    Raises:
        ConfigError: it is taken, or not one of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"--host {host}: {error.strerror}") from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host} port {port}: {error.strerror}; choose another --port"
            ) from error
        yield listener
