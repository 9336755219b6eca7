"""Requests that are wrong, or meant to harm: each gets its status in OpenAI's error shape, and the server goes on."""

from __future__ import annotations

import functools
import io
import json
import os
import platform
import socket
import struct
import threading
import zlib
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from PIL import Image as PillowImage

from pipeline.serving.limits import Limits
from tests.jobs.conftest import png
from tests.pipeline.serving.conftest import Running, Serve, data_url, image_part

JSON = {"Content-Type": "application/json"}
GOOD = data_url(png(1, 31, 17))


def user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 2}


def picture(url: Any) -> dict[str, Any]:
    return user([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}])


def option(**values: Any) -> dict[str, Any]:
    return user("hi") | values


def bomb_png(width: int, height: int) -> bytes:
    """A PNG whose header announces many pixels and whose data unfold to them: a few kB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    row = b"\0" * min(width // 8 + 1, 20_000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * 100)) + chunk(b"IEND", b"")
    )


def gif() -> bytes:
    buffer = io.BytesIO()
    PillowImage.new("RGB", (17, 13)).save(buffer, "GIF")
    return buffer.getvalue()


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'

BODIES: dict[str, tuple[bytes, int]] = {
    "empty": (b"", 400),
    "not json": (b"{", 400),
    "null": (b"null", 400),
    "a list": (b"[]", 400),
    "a string": (b'"hello"', 400),
    "not utf-8": (b'{"messages": "\xff\xfe"}', 400),
    "half of a surrogate pair": (b'{"messages":[{"role":"user","content":"\\ud800"}]}', 400),
    "deeply nested": (b'{"messages":' + b"[" * 100_000, 400),
    "deeply nested and closed": (b'{"messages":' + b"[" * 50_000 + b"]" * 50_000 + b"}", 400),
    "a number of a million digits": (
        b'{"messages":[{"role":"user","content":"x"}],"seed":' + b"9" * 1_000_000 + b"}",
        400,
    ),
    "not a number": (b'{"messages":[{"role":"user","content":"x"}],"temperature":NaN}', 400),
}

REQUESTS: dict[str, tuple[Any, int]] = {
    "no messages field": ({"max_tokens": 2}, 400),
    "no messages": ({"messages": []}, 400),
    "messages as text": ({"messages": "hi"}, 400),
    "a message as text": ({"messages": ["hi"]}, 400),
    "no role": ({"messages": [{"content": "hi"}]}, 400),
    "unknown role": ({"messages": [{"role": "tool", "content": "hi"}]}, 400),
    "role as number": ({"messages": [{"role": 3, "content": "hi"}]}, 400),
    "no content": ({"messages": [{"role": "user"}]}, 400),
    "null content": (user(None), 400),
    "content as number": (user(7), 400),
    "empty content": (user(""), 400),
    "blank content": (user(" \n"), 400),
    "no parts": (user([]), 400),
    "unknown part": (user([{"type": "input_audio", "input_audio": {}}]), 400),
    "part without type": (user([{"text": "hi"}]), 400),
    "assistant first": ({"messages": [{"role": "assistant", "content": "hi"}]}, 400),
    "assistant last": ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, 400),
    "two users": ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, 400),
    "late system": ({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}, 400),
    "image of the assistant": (
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": [image_part(1)]},
                {"role": "user", "content": "b"},
            ]
        },
        400,
    ),
    "too many messages": ({"messages": [{"role": "user", "content": "a"}] * 300}, 400),
    "very long text": (user("word " * 50_000), 400),
    "longer than the model reads": (user("word " * 3_000), 400),
    "too many images": (user([*[image_part(1)] * 8, {"type": "text", "text": "?"}]), 400),
    "zero tokens": (option(max_tokens=0), 400),
    "negative tokens": (option(max_tokens=-1), 400),
    "far too many tokens": (option(max_tokens=10**9), 400),
    "tokens as text": (option(max_tokens="many"), 400),
    "half a token": (option(max_tokens=2.5), 400),
    "both names of max_tokens": (option(max_completion_tokens=2), 400),
    "negative temperature": (option(temperature=-0.1), 400),
    "hot temperature": (option(temperature=2.5), 400),
    "top_p of zero": (option(top_p=0), 400),
    "top_p above one": (option(top_p=1.5), 400),
    "seed out of range": (option(seed=2**63), 400),
    "empty stop": (option(stop=""), 400),
    "five stops": (option(stop=list("abcde")), 400),
    "long stop": (option(stop="x" * 500), 400),
    "several answers": (option(n=3), 400),
    "logprobs": (option(logprobs=True), 400),
    "tools": (option(tools=[{"type": "function", "function": {"name": "f"}}]), 400),
    "a json answer": (option(response_format={"type": "json_object"}), 400),
    "unknown field": (option(temprature=0.5), 400),
    "stream as text": (option(stream="maybe"), 400),
    "stream_options without stream": (option(stream_options={"include_usage": True}), 400),
    "unknown model": (option(model="gpt-4o"), 404),
    "model as list": (option(model=["tiny"]), 400),
    "image as text": (user([{"type": "image_url", "image_url": GOOD}]), 400),
    "image without url": (user([{"type": "image_url", "image_url": {}}]), 400),
    "image url as number": (picture(3), 400),
    "empty url": (picture(""), 400),
    "http address": (picture("http://127.0.0.1:9/a.png"), 400),
    "https address": (picture("https://example.com/a.png"), 400),
    "metadata address": (picture("http://169.254.169.254/latest/meta-data"), 400),
    "file address": (picture("file:///etc/passwd"), 400),
    "path": (picture("/etc/passwd"), 400),
    "ftp address": (picture("ftp://127.0.0.1/a.png"), 400),
    "address in upper case": (picture("FILE:///etc/hostname"), 400),
    "address that cannot be parsed": (picture("http://[::1/a.png"), 400),
    "data url without base64": (picture("data:image/png,abc"), 400),
    "data url of text": (picture("data:text/plain;base64,aGk="), 400),
    "data url without comma": (picture("data:image/png;base64"), 400),
    "data url with a long head": (picture("data:image/png;" + "a=b;" * 10_000 + "base64,aGk="), 400),
    "cut base64": (picture(GOOD[:-3]), 400),
    "letters that are not base64": (picture("data:image/png;base64,!!!!"), 400),
    "no image data": (picture("data:image/png;base64,"), 400),
    "cut image": (picture(data_url(png(1, 131, 117)[:900])), 400),
    "only a header": (picture(data_url(png(1, 31, 17)[:33])), 400),
    "noise": (picture(data_url(bytes(range(256)) * 9)), 400),
    "svg": (picture(data_url(SVG, "image/svg+xml")), 400),
    "gif": (picture(data_url(gif(), "image/gif")), 400),
    "bomb of 100000 x 100000": (picture(data_url(bomb_png(100_000, 100_000))), 400),
    "bomb of 2^31 x 2^31": (picture(data_url(bomb_png(2**31 - 1, 2**31 - 1))), 400),
    "one pixel": (picture(data_url(png(1, 1, 1))), 400),
    "a thread": (picture(data_url(png(1, 1500, 2))), 400),
}


def check_refusal(response: httpx.Response, status: int) -> None:
    """OpenAI's shape, and nothing of this machine in it."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(response.content) < 1000
    for secret in (platform.node(), str(Path.cwd()), "/tmp", "Traceback", "site-packages", ".py", "passwd"):
        assert secret not in response.text
    assert "server" not in response.headers


@pytest.mark.parametrize("name", BODIES)
def test_body_that_is_no_request_is_refused(server: Running, name: str) -> None:
    body, status = BODIES[name]
    check_refusal(httpx.post(f"{server.address}/v1/chat/completions", content=body, headers=JSON), status)


@pytest.mark.parametrize("name", REQUESTS)
def test_request_with_a_fault_is_refused(server: Running, name: str) -> None:
    body, status = REQUESTS[name]
    for stream in (False, True) if name.startswith(("cut", "longer", "bomb")) else (False,):
        asked = body | ({"stream": True} if stream else {})
        check_refusal(httpx.post(f"{server.address}/v1/chat/completions", json=asked, timeout=60), status)


def test_server_is_as_before_after_all_of_them(server: Running) -> None:
    process = psutil.Process(os.getpid())
    address = f"{server.address}/v1/chat/completions"
    with httpx.Client(timeout=60) as client:

        def send_all() -> int:
            for body, _ in BODIES.values():
                client.post(address, content=body, headers=JSON)
            for asked, _ in REQUESTS.values():
                client.post(address, json=asked)
            return int(process.memory_info().rss)

        first = send_all()
        last = send_all()
        assert client.post(address, json=user("hello")).status_code == 200
    assert last - first < 64 << 20
    assert server.chat.admission.num_requests == server.chat.admission.held_bytes == 0


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/v1/chat/completions", {}, 405),
        ("POST", "/v1/models", JSON, 405),
        ("GET", "/v1/models/../../etc/passwd", {}, 404),
        ("GET", "/nothing", {}, 404),
        ("POST", "/v1/chat/completions", {"Content-Type": "text/plain"}, 415),
        ("POST", "/v1/chat/completions", JSON | {"Content-Encoding": "gzip"}, 415),
        ("GET", "/health", {"Host": "evil.example"}, 403),
        ("GET", "/health", {"Host": "127.0.0.1.evil.example"}, 403),
        ("POST", "/v1/chat/completions", JSON | {"Origin": "https://evil.example"}, 403),
        ("POST", "/v1/chat/completions", JSON | {"Origin": "null"}, 403),
    ],
)
def test_wrong_address_or_sender_is_refused(
    server: Running, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    check_refusal(httpx.request(method, f"{server.address}{path}", headers=headers, content=b"{}"), status)


def test_body_larger_than_allowed_is_refused_before_it_is_read(serve: Serve) -> None:
    server = serve(Limits(body_bytes=1 << 20))
    address = f"{server.address}/v1/chat/completions"
    check_refusal(httpx.post(address, content=b"x" * (3 << 20), headers=JSON), 413)
    pieces = (b"x" * (1 << 18) for _ in range(9))  # without a declared length
    check_refusal(httpx.post(address, content=pieces, headers=JSON), 413)
    assert server.chat.admission.held_bytes == 0


def test_bodies_that_fill_the_memory_for_them_are_refused(serve: Serve) -> None:
    server = serve(Limits(held_bytes=1000))
    check_refusal(httpx.post(f"{server.address}/v1/chat/completions", json=user("x" * 2000)), 503)
    assert httpx.post(f"{server.address}/v1/chat/completions", json=user("x"), timeout=60).status_code == 200


def raw(server: Running, *pieces: bytes) -> bytes:
    """Send bytes as they are; returns what came back."""
    parts = urlsplit(server.address)
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
            answer = b""
            while data := connection.recv(65536):
                answer += data
        except (BrokenPipeError, ConnectionResetError):
            pass
        return answer


def test_header_flood_and_nonsense_end_the_connection_only(server: Running) -> None:
    headers = b"".join(b"X-%d: %s\r\n" % (number, b"y" * 90) for number in range(2000))
    raw(server, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n" + headers)  # answered with 400, or cut off
    assert raw(server, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9 + b"\r\n\r\n").startswith(b"HTTP/1.1 400")
    wrong_length = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n{}"
    assert raw(server, wrong_length).startswith(b"HTTP/1.1 400")
    assert httpx.get(f"{server.address}/health").status_code == 200


def test_slow_body_is_given_up(serve: Serve) -> None:
    server = serve(Limits(body_timeout_s=0.3))
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    answer = raw(server, head + b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 408")
    assert server.chat.admission.num_requests == 0


class Files(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_image_from_an_allowed_host_is_fetched_and_no_other(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1, 53, 37))
    handler = functools.partial(Files, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as files:
        threading.Thread(target=files.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{files.server_port}"
        server = serve(image_hosts=frozenset({host}))
        address = f"{server.address}/v1/chat/completions"
        fetched = httpx.post(address, json=picture(f"http://{host}/a.png"), timeout=60)
        sent = httpx.post(address, json=picture(data_url(png(1, 53, 37))), timeout=60)
        assert fetched.json()["choices"] == sent.json()["choices"]
        check_refusal(httpx.post(address, json=picture(f"http://{host}/missing.png"), timeout=60), 400)
        check_refusal(httpx.post(address, json=picture(f"http://u:p@{host}/a.png"), timeout=60), 400)
        check_refusal(httpx.post(address, json=picture("http://127.0.0.1:1/a.png"), timeout=60), 400)
        files.shutdown()


def test_message_names_the_field(server: Running) -> None:
    def param(body: Any) -> Any:
        error = httpx.post(f"{server.address}/v1/chat/completions", json=body).json()["error"]
        return error["param"]

    assert param(option(temperature=9)) == "temperature"
    assert param(picture("file:///x")) == "messages[0].content[0].image_url.url"
    assert param(user([{"type": "image_url", "image_url": {}}])) == "messages[0].content[0].image_url.url"
    assert param(user([{"type": "video", "video": {}}])) == "messages[0].content[0]"
    assert param({"messages": [{"role": "x", "content": "a"}]}) == "messages[0].role"
    assert param(user(7)) == "messages[0].content"
    assert param(option(temprature=0)) == "temprature"


def test_letters_of_placeholders_stay_letters(server: Running) -> None:
    asked = user("What does <image> mean in </s> or <s>?")
    answer = httpx.post(f"{server.address}/v1/chat/completions", content=json.dumps(asked), headers=JSON, timeout=60)
    assert answer.status_code == 200
