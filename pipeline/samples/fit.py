"""Sizing an image for the vision tower: one square of it, or several tiles, with the resampling of CLIP's processor.

Which tiles an image gets is decided in `model.fusion.resolution`.

Output is uint8 and stays so until it is on the trainer's device, where mean and std are applied: a quarter of the bytes
of float32. At most one grey level from `transformers.CLIPImageProcessor` (Pillow backend).

H, W image size in pixels; S longer side; E short edge after resizing; U tiles; P = output side.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from model.fusion.resolution import Fit, Tiling
from pipeline.samples.image import Pixels

_BICUBIC = 3
_LARGE_REDUCTION = 8


@dataclass(frozen=True)
class ImageSpec:
    """The square a vision tower expects."""

    size: int
    """Output side P, pixels."""
    mean: tuple[float, float, float]
    """Per channel, of pixels scaled to 0..1; also the colour of the padding."""
    std: tuple[float, float, float]
    resize_edge: int | None = None
    """Short edge E after resizing, pixels, when it differs from `size`; the centre is cut out of it."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.edge < self.size:
            raise ValueError(f"image size {self.size} and resize edge {self.edge}: expected 1 <= size <= edge")

    @property
    def edge(self) -> int:
        """Short edge E after resizing, pixels."""
        return self.size if self.resize_edge is None else self.resize_edge

    @property
    def background(self) -> tuple[int, int, int]:
        """Colour of the padding: (122, 116, 104) for CLIP."""
        red, green, blue = (int(value * 255) for value in self.mean)
        return red, green, blue

    @classmethod
    def from_preprocessor_config(cls, source: str | Path | Mapping[str, Any]) -> Self:
        """Read a Hugging Face `preprocessor_config.json`, its folder, or its content.

        Raises:
            ValueError: no such file, or a processor whose steps these are not (other resampling, other scaling).
        """
        config, where = _load_config(source)
        if config.get("do_rescale", True) is False or abs(config.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
            raise ValueError(f"{where}: expected pixels rescaled by 1/255; this processor's scaling is not supported")
        if config.get("resample", _BICUBIC) != _BICUBIC:
            raise ValueError(f"{where}: resample {config['resample']} is not supported; expected {_BICUBIC} (bicubic)")
        edge = _side(config.get("size", 224), f"{where}: size")
        crops = config.get("do_center_crop", "crop_size" in config)
        size = _side(config.get("crop_size", edge), f"{where}: crop_size") if crops else edge
        normalises = config.get("do_normalize", True)
        mean = config.get("image_mean", (0.48145466, 0.4578275, 0.40821073)) if normalises else (0.0, 0.0, 0.0)
        std = config.get("image_std", (0.26862954, 0.26130258, 0.27577711)) if normalises else (1.0, 1.0, 1.0)
        return cls(size, _channels(mean, where), _channels(std, where), edge if edge != size else None)


def fit_image(rgb: Pixels, spec: ImageSpec, fit: Fit = "pad") -> Pixels:
    """Resize an image to the tower's square.

    Worked numbers, size 336: a 640 x 480 image is padded to 640 x 640 (80 rows above, 80 below) and resized; with
    `crop` it is resized to 448 x 336 and loses 56 columns on each side.

    Args:
        rgb: uint8 `[H, W, 3]`.
        spec: target.
        fit: `pad` shows the whole image on a square of the mean colour; `crop` fills the square and cuts the long
            side; `stretch` distorts it.

    Returns:
        uint8 `[P, P, 3]`.
    """
    return _as_pixels(_fit_square(_as_tensor(rgb), spec, fit))


def fit_tiles(rgb: Pixels, spec: ImageSpec, tiling: Tiling) -> Pixels:
    """Cut an image into tiles, row by row, with the one that shows all of it before or after them.

    Args:
        rgb: uint8 `[H, W, 3]`.
        spec: target.
        tiling: as `Resolution.tiling` chose it for this size. Where it is larger than the image, tiles are black.

    Returns:
        uint8 `[U, P, P, 3]`.
    """
    image, side = _as_tensor(rgb), spec.size
    parts = []
    if tiling.rows:
        height, width = tiling.rows * side, tiling.columns * side
        resized = _as_pixels(_resize(image, *tiling.content)[0])
        top, left = (height - resized.shape[0]) // 2, (width - resized.shape[1]) // 2
        canvas = np.zeros((height, width, 3), np.uint8)
        canvas[top : top + resized.shape[0], left : left + resized.shape[1]] = resized
        tiles = canvas.reshape(tiling.rows, side, tiling.columns, side, 3).swapaxes(1, 2)
        parts.append(np.ascontiguousarray(tiles).reshape(-1, side, side, 3))
    if tiling.overview is not None:
        overview = _as_pixels(_fit_square(image, spec, tiling.overview))[None]
        parts.insert(len(parts) if tiling.overview_last else 0, overview)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _as_tensor(rgb: Pixels) -> Tensor:
    """Return `[1, 3, H, W]`, channels-last in memory, which is the layout torch's fast uint8 kernel wants."""
    # a batch of one by `view`: the strides of `unsqueeze` look planar to the kernel, which is half as fast then
    pixels = torch.from_numpy(np.ascontiguousarray(rgb))
    return pixels.view(1, *pixels.shape).permute(0, 3, 1, 2)


def _as_pixels(image: Tensor) -> Pixels:
    """Return `[3, H, W]` as `[H, W, 3]`: what the kernel leaves in memory, so only a cut of it is copied."""
    pixels: Pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    return pixels


def _fit_square(image: Tensor, spec: ImageSpec, fit: Fit) -> Tensor:
    """Resize `[1, 3, H, W]` to `[3, P, P]`."""
    if fit == "stretch":
        return _resize(image, spec.size, spec.size)[0]
    resized = _pad_and_resize(image, spec) if fit == "pad" else _resize_short_edge(image, spec.edge)
    top, left = ((side - spec.size) // 2 for side in resized.shape[-2:])
    return resized[0, :, top : top + spec.size, left : left + spec.size]


def _pad_and_resize(image: Tensor, spec: ImageSpec) -> Tensor:
    """Expand to a square of the background colour, then resize; `[1, 3, H, W]` to `[1, 3, E, E]`.

    Resampling is separable, columns first: rows are squeezed before the square is completed, so that a 40000 x 400
    image never exists as 40000 x 40000 pixels. Same values as resizing the whole square. A very tall image is squeezed
    rows first; at that reduction bicubic overshoot averages out and the order changes no value by more than one.
    """
    height, width = image.shape[-2:]
    side, edge = max(height, width), spec.edge
    left, top = (side - width) // 2, (side - height) // 2
    if height > width and height > _LARGE_REDUCTION * edge:
        return _resize(_pad_columns(_resize(image, edge, width), left, side, spec), edge, edge)
    canvas = _canvas((side, edge), top, top + height, spec)
    _resize_into(_pad_columns(image, left, side, spec), canvas[:, :, top : top + height])
    return _resize(canvas, edge, edge)


def _pad_columns(image: Tensor, left: int, columns: int, spec: ImageSpec) -> Tensor:
    """Widen to a number of columns with the background colour."""
    height, width = image.shape[-2:]
    if width == columns:
        return image
    padded = _canvas((height, columns), 0, 0, spec)
    padded[..., left : left + width] = image
    return padded


def _canvas(size: tuple[int, int], start: int, end: int, spec: ImageSpec) -> Tensor:
    """Return `[1, 3, *size]` of the background colour; rows `start` to `end` are left to be written."""
    canvas = torch.empty(1, *size, 3, dtype=torch.uint8)
    row = _background_row(spec.background, size[1])
    canvas[:, :start] = row
    canvas[:, end:] = row
    return canvas.permute(0, 3, 1, 2)


@lru_cache(maxsize=64)  # rows of a few thousand pixels, for the widths that a data set has
def _background_row(background: tuple[int, int, int], width: int) -> Tensor:
    """Return `[W, 3]` of one colour: copied down, it fills a canvas faster than pixel by pixel."""
    return torch.tensor(background, dtype=torch.uint8).repeat(width).view(width, 3)


def _resize_short_edge(image: Tensor, edge: int) -> Tensor:
    """Resize so that the short edge is E pixels; the long one is rounded down."""
    height, width = image.shape[-2:]
    short = min(height, width)
    return _resize(image, height * edge // short, width * edge // short)


def _resize(image: Tensor, height: int, width: int) -> Tensor:
    if image.shape[-2:] == (height, width):
        return image
    return interpolate(image, (height, width), mode="bicubic", antialias=True, align_corners=False)


def _resize_into(image: Tensor, target: Tensor) -> None:
    """Write the image, resized to the target's size, into the target: the operator of `_resize` without a copy."""
    if image.shape == target.shape:
        target.copy_(image)
    else:
        torch.ops.aten._upsample_bicubic2d_aa.out(image, target.shape[-2:], False, None, None, out=target)


def _load_config(source: str | Path | Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    if isinstance(source, Mapping):
        return source, "preprocessor config"
    path = Path(source)
    path = path / "preprocessor_config.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"image processor {path}: no such file; expected the preprocessor_config.json of the tower")
    config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"image processor {path}: expected a JSON object")
    return config, str(path)


def _side(size: object, where: str) -> int:
    """Read 336, {"shortest_edge": 336} or {"height": 336, "width": 336}."""
    if isinstance(size, Mapping):
        sides = {size[name] for name in ("shortest_edge", "height", "width") if name in size}
        size = sides.pop() if len(sides) == 1 else None
    if not isinstance(size, int) or isinstance(size, bool):
        raise ValueError(f"{where}: expected one number, a shortest_edge, or equal height and width")
    return size


def _channels(values: object, where: str) -> tuple[float, float, float]:
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise ValueError(f"{where}: image_mean and image_std need 3 numbers, found {values!r}")
    red, green, blue = (float(value) for value in values)
    return red, green, blue
