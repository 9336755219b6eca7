"""Pixels to pictures inside a page: lossless WebP as data URIs, so that a report is one file.

H, W pixels.
"""

from __future__ import annotations

import base64
import io

from PIL import Image

from pipeline.samples.image import Pixels


def to_data_uri(rgb: Pixels, longest_side: int | None = None) -> str:
    """Return a picture that a browser shows without fetching anything.

    Args:
        rgb: uint8 `[H, W, 3]`.
        longest_side: shrink to this many pixels, with lossy compression; None keeps every pixel unchanged.
    """
    picture = Image.fromarray(rgb)
    buffer = io.BytesIO()
    if longest_side is None:
        picture.save(buffer, "WEBP", lossless=True, method=2)
    else:
        picture.thumbnail((longest_side, longest_side))
        picture.save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
