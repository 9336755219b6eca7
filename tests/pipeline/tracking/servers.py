"""A real MLflow server as a child process, and a relay before it: as a proxy, or answering as a test tells it."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Server(NamedTuple):
    """Where a server listens."""

    port: int

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serve_mlflow(backend: str, *options: str, **variables: str) -> Iterator[Server]:
    """Serve a database until the block ends; `variables` are added to the server's environment."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", backend, "--host", "127.0.0.1"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **variables}
    process = subprocess.Popen(
        [*command, "--port", str(port), "--workers", "1", *options],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not _listens(port):
            assert process.poll() is None
            time.sleep(0.1)
        yield Server(port)
    finally:
        process.terminate()
        process.wait()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


class Relay:
    """Passes requests on to a server, but for uploads of files, which meet a fault until it is lifted."""

    def __init__(
        self, target: Server, *, prefix: str = "", token: str | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        """Listen.

        Args:
            target: gets the requests.
            prefix: path that addresses must begin with; the target does not see it.
            token: what requests must bear.
            tls: encrypts.
        """
        self.status: int | None = None
        """What uploads are answered with instead of being passed on."""
        self.delay_s = 0.0
        self.num_uploads = 0
        self.refused_path: str | None = None
        """Requests whose path has this in it are answered with `refused_status`, whatever they are."""
        self.refused_status = 403
        self.num_refused = 0
        relay = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(self) -> None:
                if not self.path.startswith(f"{prefix}/"):
                    self.answer(404, b"nothing here", "text/html")
                    return
                self.path = self.path.removeprefix(prefix)
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if token is not None and self.headers.get("Authorization") != f"Bearer {token}":
                    self.answer(401, b"who are you", "text/plain")
                    return
                if relay.refused_path is not None and relay.refused_path in self.path:
                    relay.num_refused += 1
                    self.answer(relay.refused_status, b"refused", "text/html")
                    return
                if "mlflow-artifacts" in self.path and self.command == "PUT":
                    relay.num_uploads += 1
                    time.sleep(relay.delay_s)
                    if relay.status is not None:
                        self.answer(relay.status, b"{}", "application/json")
                        return
                link = http.client.HTTPConnection("127.0.0.1", target.port)
                headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                link.request(self.command, self.path, body, headers)
                reply = link.getresponse()
                self.answer(reply.status, reply.read(), reply.getheader("Content-Type") or "application/json")
                link.close()

            do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = pass_on  # noqa: N815

            def answer(self, status: int, body: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        scheme, host = ("http", "127.0.0.1") if tls is None else ("https", "localhost")
        self.uri = f"{scheme}://{host}:{self._server.server_address[1]}{prefix}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
