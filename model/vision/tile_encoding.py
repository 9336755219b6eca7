"""Tiles through a vision tower in batches of a fixed size.

Shapes: U tiles, H = W pixels, P features per tile, V vision width.
"""

from typing import cast

import torch
from torch import Tensor

from model.vision.pixels import PixelStats, normalize_pixels
from model.vision.tower_builder import AnyTower


def encode_tiles(
    tower: AnyTower, pixels: Tensor, stats: PixelStats | None, micro_batch_size: int | None = None
) -> Tensor:
    """Compute tower features, before the projector; without a graph while the tower is frozen.

    Args:
        tower: loaded.
        pixels: uint8 [U, H, W, 3] as decoded (normalised here, on the tower's device, in float32), or already
            normalised floats [U, 3, H, W].
        stats: normalisation of uint8 pixels; floats need none.
        micro_batch_size: tiles per tower call; None for all at once.

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
    for part in torch.split(pixels, micro_batch_size or pixels.shape[0]):
        part = part.to(tower.device, non_blocking=True)
        if stats is not None and part.dtype == torch.uint8:
            part = normalize_pixels(part, stats, tower.dtype)
        parts.append(cast(Tensor, tower(part)))
    return torch.cat(parts)[:num_tiles]
