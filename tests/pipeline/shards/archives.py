"""Archives for tests: well-formed ones from `tarfile`, damaged ones from bytes."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

BLOCK = 512


def tar_bytes(files: Iterable[tuple[str, bytes]], tar_format: int = tarfile.USTAR_FORMAT) -> bytes:
    """Return an archive with these files, padded to 10240 bytes as tar pads."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def entry(name: str, kind: bytes = b"0", size_field: bytes | None = None, size: int = 0, data: bytes = b"") -> bytes:
    """Return one raw member with a valid checksum whose header need not be honest."""
    field = f"{size:011o}\0".encode() if size_field is None else size_field
    header = bytearray(BLOCK)
    header[:100] = name.encode().ljust(100, b"\0")
    header[100:108] = b"0000644\0"
    header[124:136] = field.ljust(12, b"\0")
    header[156:157] = kind
    header[257:265] = b"ustar\x0000"
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header) + data + bytes(-len(data) % BLOCK)


END = bytes(2 * BLOCK)


def png(width: int = 5, height: int = 3, value: int = 7) -> bytes:
    """Return a small PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def caption_files(key: str, text: str = "a red ball", value: int = 7) -> list[tuple[str, bytes]]:
    """Return the members of one caption sample."""
    return [(f"{key}.png", png(value=value)), (f"{key}.txt", text.encode())]


def instruction_files(key: str, num_images: int = 2) -> list[tuple[str, bytes]]:
    """Return the members of one instruction sample."""
    names = [f"{idx}.png" for idx in range(num_images)]
    question = "<image>" * num_images + "\nWhat is it?"
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "A ball."}]
    annotation = {"id": key, "image": names, "conversations": turns} if names else {"conversations": turns}
    images = [(f"{key}.{name}", png(value=idx)) for idx, name in enumerate(names)]
    return [*images, (f"{key}.json", json.dumps(annotation).encode())]


def write_tar(path: Path, files: Iterable[tuple[str, bytes]]) -> str:
    """Write an archive and return its path as text."""
    path.write_bytes(tar_bytes(files))
    return str(path)
