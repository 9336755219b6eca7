"""Tiles through a vision tower in batches of a fixed size.

Shapes: U tiles, H = W pixels, P features per tile, V vision width.
"""

from typing import cast

import torch
from torch import Tensor

from model.vision.native_encoders import Grids
from model.vision.native_tower import NativeTower
from model.vision.pixels import PixelStats, normalize_pixels
from model.vision.tower_builder import AnyTower


def encode_tiles(
    tower: AnyTower,
    pixels: Tensor,
    stats: PixelStats | None,
    micro_batch_size: int | None = None,
    grids: Grids | None = None,
) -> Tensor:
    """Compute tower features, before the projector; without a graph while the tower is frozen.

    Args:
        tower: loaded.
        pixels: uint8 [U, H, W, 3] as decoded (normalised here, on the tower's device, in float32), or already
            normalised floats [U, 3, H, W].
        stats: normalisation of uint8 pixels; floats need none.
        micro_batch_size: tiles per tower call, or images of a tower of native resolution; None for all at once.
        grids: rows and columns of the tiles of each image, for a tower of native resolution.

    Returns:
        [U, P, V] in the tower's type for uint8 pixels, else in the pixels' type.

    Raises:
        ValueError: pixels are uint8 and `stats` is missing.
    """
    if pixels.dtype == torch.uint8 and stats is None:
        raise ValueError("uint8 pixels need the normalisation of the tower; pass its PixelStats")
    num_tiles = pixels.shape[0]
    if num_tiles == 0:  # towers fail on empty batches: one dummy tile, then none of it
        pixels = pixels.new_zeros(1, *pixels.shape[1:])
    parts = []
    if isinstance(tower, NativeTower):
        calls = _whole_images(pixels, [(1, 1)] if num_tiles == 0 else grids, micro_batch_size)
    else:
        calls = [(part, None) for part in torch.split(pixels, micro_batch_size or pixels.shape[0])]
    for part, own_grids in calls:
        part = part.to(tower.device, non_blocking=True)
        if stats is not None and part.dtype == torch.uint8:
            part = normalize_pixels(part, stats, tower.dtype)
        parts.append(cast(Tensor, tower(part) if own_grids is None else tower(part, own_grids)))
    return torch.cat(parts)[:num_tiles]


def _whole_images(pixels: Tensor, grids: Grids | None, num_images: int | None) -> list[tuple[Tensor, Grids | None]]:
    """Split tiles after every `num_images` images."""
    if grids is None:
        raise ValueError("a vision tower of native resolution needs the grids of its images")
    step = num_images or len(grids)
    groups = [list(grids[begin : begin + step]) for begin in range(0, len(grids), step)]
    counts = [sum(rows * columns for rows, columns in group) for group in groups]
    if sum(counts) != len(pixels):
        raise ValueError(f"{len(pixels)} tiles, but the grids of {len(grids)} images have {sum(counts)}")
    return list(zip(pixels.split(counts), groups, strict=True))
