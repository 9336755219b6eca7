"""An S3 service on this machine (moto), and a relay before it that answers requests with faults."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import boto3
import pytest
from moto.server import ThreadedMotoServer

BUCKET = "buck"
_KEYS = {"aws_access_key_id": "id", "aws_secret_access_key": "key", "region_name": "us-east-1"}
_FAULTS = {
    "SlowDown": (503, "Please reduce your request rate."),
    "RequestTimeTooSkewed": (403, "The difference between the request time and the server's time is too large."),
    "AccessDenied": (403, "Access Denied"),
    "NoSuchBucket": (404, "The specified bucket does not exist"),
}


@contextmanager
def serve_bucket() -> Iterator[tuple[int, Any]]:
    """Yield port and client of a service with an empty bucket; credentials are in the environment meanwhile."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **_KEYS)
    client.create_bucket(Bucket=BUCKET)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "id")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "key")
        yield port, client
    server.stop()


class FaultRelay:
    """Passes requests on, but answers the next `num_faults` of them with an error of S3."""

    def __init__(self, target: int) -> None:
        self.fault, self.num_faults = "SlowDown", 0
        self.methods: tuple[str, ...] = ("GET", "HEAD", "PUT", "POST", "DELETE")
        self.num_answered = 0
        self.ignores_conditions = False
        """As a store does that has no conditional writes."""
        self.only, self.until = "", 0.0
        """Faults until a moment of `time.monotonic`, of requests whose address holds this text."""
        self.loses_answers = 0
        """So many requests are carried out, but answered with a fault."""
        relay = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(self) -> None:
                body = self.body()
                is_met = time.monotonic() < relay.until and relay.only in unquote(self.path)
                if is_met and relay.fault == "lost connections":
                    relay.num_answered += 1
                    self.close_connection = True
                    return
                if is_met and relay.fault == "lost answers":
                    relay.loses_answers = 1
                elif is_met or (relay.num_faults and self.command in relay.methods):
                    relay.num_faults -= not is_met
                    relay.num_answered += 1
                    status, text = _FAULTS[relay.fault]
                    self.answer(
                        status, {}, f"<Error><Code>{relay.fault}</Code><Message>{text}</Message></Error>".encode()
                    )
                    return
                link = http.client.HTTPConnection("127.0.0.1", target)
                dropped = ["expect", "transfer-encoding", "content-length"]
                if relay.ignores_conditions:
                    dropped += ["if-none-match", "if-match"]
                headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
                link.request(self.command, self.path, body, headers)
                reply = link.getresponse()
                content = reply.read()
                link.close()
                if relay.loses_answers and self.command in relay.methods:
                    relay.loses_answers -= 1
                    relay.num_answered += 1
                    self.answer(503, {}, b"<Error><Code>SlowDown</Code><Message>lost</Message></Error>")
                    return
                self.answer(reply.status, dict(reply.getheaders()), content)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on  # noqa: N815

            def body(self) -> bytes:
                if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                if self.command != "HEAD" or "Content-Length" not in headers:
                    headers = {name: value for name, value in headers.items() if name.lower() != "content-length"}
                    headers["Content-Length"] = str(len(body))
                for name, value in headers.items():
                    if name.lower() not in ("connection", "transfer-encoding", "server", "date"):
                        self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.port = self._server.server_address[1]

    def break_down(self, fault: str, lasts_s: float, only: str) -> None:
        """Answer requests whose address holds a text with a fault from now on."""
        self.fault, self.only, self.until = fault, only, time.monotonic() + lasts_s

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
