"""Draws a scene with Pillow, and encodes it as JPEG or PNG bytes. Resizing and padding are left to preprocessing."""

from __future__ import annotations

import io
import math
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from pipeline.tools.demo.scenes import GRID, Scene, Thing

_OVERSAMPLING = 2  # drawn larger, then reduced: Pillow draws polygons without antialiasing


def draw_scene(scene: Scene, pixels_per_cell: int) -> Image.Image:
    """Draw a scene as an RGB picture of `scene.width` by `scene.height` cells.

    Args:
        scene: what to draw; the same scene always gives the same pixels.
        pixels_per_cell: resolution.
    """
    scale = pixels_per_cell * _OVERSAMPLING
    size = round(scene.width * scale), round(scene.height * scale)
    canvas = Image.new("RGB", size, scene.background)
    brush = ImageDraw.Draw(canvas)
    left, top = (GRID - scene.width) / 2, (GRID - scene.height) / 2
    for thing in scene.things:
        center = (thing.x - left) * scale, (thing.y - top) * scale
        _draw_thing(brush, thing, center, thing.radius * scale)
    return _with_texture(canvas.reduce(_OVERSAMPLING), scene.texture_seed)


def encode_picture(picture: Image.Image, file_format: Literal["jpg", "png"], quality: int = 90) -> bytes:
    """Encode a picture; `quality` is the JPEG quality in 1..100 and unused for PNG."""
    buffer = io.BytesIO()
    if file_format == "jpg":
        picture.save(buffer, "JPEG", quality=quality)
    else:
        picture.save(buffer, "PNG", compress_level=1)  # grain does not compress, trying hard only takes time
    return buffer.getvalue()


def _draw_thing(brush: ImageDraw.ImageDraw, thing: Thing, center: tuple[float, float], radius: float) -> None:
    x, y = center
    if thing.shape == "circle":
        radius *= 0.9
        brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=thing.rgb)
        return
    corners = [
        (x + radius * distance * math.sin(angle), y - radius * distance * math.cos(angle))
        for distance, angle in _outline(thing.shape, math.radians(thing.angle))
    ]
    brush.polygon(corners, fill=thing.rgb)


def _outline(shape: str, turn: float) -> list[tuple[float, float]]:
    """Corners of a shape in polar form: distance in radii, angle in radians clockwise from the top."""
    if shape == "square":
        return [(1.1, turn + math.pi / 4 + k * math.pi / 2) for k in range(4)]
    if shape == "triangle":
        return [(1.1, turn + k * 2 * math.pi / 3) for k in range(3)]
    if shape == "star":
        return [(1.12 if k % 2 == 0 else 0.46, turn + k * math.pi / 5) for k in range(10)]
    if shape == "cross":
        arm, half = 1.02, 0.3  # arm length and half of the arm's breadth, in radii
        tip, reach = math.atan2(half, arm), math.hypot(half, arm)
        notch = math.hypot(half, half)
        quarter = [(reach, -tip), (reach, tip), (notch, math.pi / 4)]
        return [(distance, turn + angle + k * math.pi / 2) for k in range(4) for distance, angle in quarter]
    raise ValueError(f"no drawing for shape {shape!r}; known are circle, square, triangle, star and cross")


def _with_texture(picture: Image.Image, seed: int) -> Image.Image:
    """Add a brightness gradient and grain, so that neither background nor things are one flat colour."""
    rng = np.random.default_rng(seed)
    height, width = picture.height, picture.width
    slope_x, slope_y = rng.uniform(-12, 12, 2)
    across, down = np.linspace(-slope_x, slope_x, width), np.linspace(-slope_y, slope_y, height)
    pixels = rng.standard_normal((height, width, 3), np.float32) * np.float32(rng.uniform(0, 6))
    pixels += np.asarray(picture)
    pixels += (down[:, None, None] + across[:, None]).astype(np.float32)
    return Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))
