"""Small films whose frames tell their number: frame k has the red level 6 k."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

STEP = 6
"""Grey levels of red from one frame to the next."""


def film(
    num_frames: int = 29,
    fps: int = 7,
    kind: str = "mp4",
    codec: str = "libx264",
    size: tuple[int, int] = (64, 48),
    rotation: int | None = None,
) -> bytes:
    """Return a film of (width, height) pixels with a key frame every nine frames."""
    import av

    file = io.BytesIO()
    container: Any = av.open(file, "w", format={"mkv": "matroska"}.get(kind, kind))
    stream = container.add_stream(codec, rate=fps)
    stream.width, stream.height = size
    stream.pix_fmt = "yuv420p"
    stream.codec_context.gop_size = 9
    if rotation is not None:
        stream.set_display_rotation(rotation)
    for number in range(num_frames):
        pixels = np.zeros((size[1], size[0], 3), np.uint8)
        pixels[...] = (STEP * number, 255 - STEP * number, 40)
        pixels[: size[1] // 2, :, 2] = 200  # the upper half is bluer
        for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
            container.mux(packet)
    for packet in stream.encode():
        container.mux(packet)
    container.close()
    return file.getvalue()
