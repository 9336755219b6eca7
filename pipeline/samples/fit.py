"""Sizing an image for the vision tower: one square of it, or several tiles, resampled as the tower's processor does.

Which tiles an image gets is decided in `model.fusion.resolution`.

Output is uint8 and stays so until it is on the trainer's device, where mean and std are applied: a quarter of the bytes
of float32. At most one grey level from `transformers.CLIPImageProcessor` (Pillow backend).

H, W image size in pixels; S longer side; E short edge after resizing; U tiles; P = output side.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor
from torch.nn.functional import interpolate

from model.fusion.resolution import Fit, Tiling
from model.vision.image_spec import ImageSpec, Resample
from pipeline.samples.image import Pixels

__all__ = ["ImageSpec", "fit_image", "fit_tiles"]

_LARGE_REDUCTION = 8
_PILLOW_NEAREST = 0


def fit_image(rgb: Pixels, spec: ImageSpec, fit: Fit = "pad") -> Pixels:
    """Resize an image to the tower's square.

    Worked numbers, size 336: a 640 x 480 image is padded to 640 x 640 (80 rows above, 80 below) and resized; with
    `crop` it is resized to 448 x 336 and loses 56 columns on each side.

    Args:
        rgb: uint8 `[H, W, 3]`.
        spec: target.
        fit: `pad` shows the whole image on a square of the mean colour; `crop` does what the tower's image processor
            does by itself: CLIP's fills the square and cuts the long side, SigLIP's distorts; `stretch` distorts it.

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
        resized = _as_pixels(_resize(image, *tiling.content, spec.resample)[0])
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
        return _resize(image, spec.size, spec.size, spec.resample)[0]
    resized = _pad_and_resize(image, spec) if fit == "pad" else _resize_alone(image, spec)
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
        squeezed = _pad_columns(_resize(image, edge, width, spec.resample), left, side, spec)
        return _resize(squeezed, edge, edge, spec.resample)
    canvas = _canvas((side, edge), top, top + height, spec)
    _resize_into(_pad_columns(image, left, side, spec), canvas[:, :, top : top + height], spec.resample)
    return _resize(canvas, edge, edge, spec.resample)


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


def _resize_alone(image: Tensor, spec: ImageSpec) -> Tensor:
    """Resize as the image processor does by itself: both sides to E, or the short one, the long one rounded down."""
    height, width = image.shape[-2:]
    if spec.shape == "distorted":
        return _resize(image, spec.edge, spec.edge, spec.resample)
    short = min(height, width)
    return _resize(image, height * spec.edge // short, width * spec.edge // short, spec.resample)


def _resize(image: Tensor, height: int, width: int, resample: Resample) -> Tensor:
    if image.shape[-2:] == (height, width):
        return image
    if resample == "nearest":
        return _resize_nearest(image, height, width)
    return interpolate(image, (height, width), mode=resample, antialias=True, align_corners=False)


def _resize_nearest(image: Tensor, height: int, width: int) -> Tensor:
    """Let Pillow choose the pixels: torch takes others where a pixel of the result falls between two."""
    source = PillowImage.fromarray(_as_pixels(image[0]))
    return _as_tensor(np.array(source.resize((width, height), _PILLOW_NEAREST)))


def _resize_into(image: Tensor, target: Tensor, resample: Resample) -> None:
    """Write the image, resized to the target's size, into the target: the operator of `_resize` without a copy."""
    size = target.shape[-2:]
    if image.shape == target.shape or resample == "nearest":
        target.copy_(_resize(image, size[0], size[1], resample))
    elif resample == "bilinear":
        torch.ops.aten._upsample_bilinear2d_aa.out(image, size, False, None, None, out=target)
    else:
        torch.ops.aten._upsample_bicubic2d_aa.out(image, size, False, None, None, out=target)
