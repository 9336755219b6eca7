"""Encoded pictures of every kind that turns up in crawled shards."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from pipeline.samples.image import Pixels


def smooth_rgb(height: int, width: int) -> Pixels:
    """Return a picture with gradients and an edge, uint8 `[H, W, 3]`."""
    rows, columns = np.mgrid[0:height, 0:width]
    red = 255 * columns / max(1, width - 1)
    green = 255 * rows / max(1, height - 1)
    blue = np.where((rows // 5 + columns // 7) % 2, 200, 30)
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    """Return the file content of a Pillow image."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def picture(height: int, width: int, image_format: str = "PNG", **options: Any) -> bytes:
    """Return an encoded smooth picture."""
    return encoded(Image.fromarray(smooth_rgb(height, width)), image_format, **options)


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and holds almost no pixels: what a bomb looks like from outside."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
    )


def png16(colour_type: int, *channels: int, width: int = 5, height: int = 3) -> bytes:
    """Return a PNG of one colour with 16 bits per channel, which Pillow writes for grey only."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = (b"\0" + struct.pack(f">{len(channels)}H", *channels) * width) * height
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
