"""An HTTP proxy in front of a storage server that spoils chosen answers: errors, resets, stalls, truncation."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Fault = Literal["500", "503", "reset", "early_reset", "cut", "short", "stall", "slow"]
FAULTS: tuple[Fault, ...] = ("500", "503", "reset", "early_reset", "cut", "short", "stall", "slow")
_SLOW_S = 0.05


class FaultProxy(ThreadingHTTPServer):
    """Forwards requests; the k-th answer to a read may be spoiled."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, upstream_port: int, stall_s: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream_port, self.stall_s = upstream_port, stall_s
        self.faults: dict[int, Fault] = {}
        self.num_reads = 0
        self.injected: list[Fault] = []
        self.lock = threading.Lock()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def arm(self, faults: dict[int, Fault]) -> None:
        """Spoil the answers with these numbers, counted from now."""
        with self.lock:
            self.faults, self.num_reads, self.injected = dict(faults), 0, []

    def next_fault(self) -> Fault | None:
        with self.lock:
            fault = self.faults.get(self.num_reads)
            self.num_reads += 1
            if fault is not None:
                self.injected.append(fault)
            return fault

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that gave up is what the test is about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def do_GET(self) -> None:
        self._forward("GET")

    def do_HEAD(self) -> None:
        self._forward("HEAD")

    def log_message(self, format: str, *args: object) -> None:
        return

    def _forward(self, method: str) -> None:
        fault = self.server.next_fault()
        if fault in ("500", "503"):
            self._answer(int(fault), b"" if method == "HEAD" else b"<Error><Code>SlowDown</Code></Error>")
            return
        if fault == "early_reset":
            self._reset()
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream_port, timeout=30)
        with contextlib.closing(upstream):
            upstream.request(method, self.path, headers=dict(self.headers))
            answer = upstream.getresponse()
            body = answer.read()
            self.send_response(answer.status)
            length = answer.headers.get("Content-Length", str(len(body)))
            for name, value in answer.headers.items():
                if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    self.send_header(name, value)
        half = len(body) // 2
        # `short` is consistent: the header agrees with what is sent, only the range does not
        self.send_header("Content-Length", str(half) if fault == "short" and body else length)
        self.end_headers()
        if method == "HEAD":
            return
        if fault in ("reset", "cut", "short", "stall"):
            self.wfile.write(body[:half])
            self.wfile.flush()
            self._break(fault)
        elif fault == "slow":
            time.sleep(_SLOW_S)
            self.wfile.write(body)
        else:
            self.wfile.write(body)

    def _break(self, fault: Fault) -> None:
        if fault == "reset":
            self._reset()
        elif fault == "stall":
            time.sleep(self.server.stall_s)
        self.close_connection = fault != "short"

    def _reset(self) -> None:
        # lingering for 0 s turns the close into a reset
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def run_proxy(upstream_port: int, stall_s: float) -> Iterator[FaultProxy]:
    """Run a proxy in a thread."""
    proxy = FaultProxy(upstream_port, stall_s)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()
