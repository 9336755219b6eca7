"""How large an image of any shape becomes for a tower of native resolution: a pure function of its height and width.

Sources: `smart_resize` of Qwen2-VL's processor, `get_image_size_for_max_num_patches` of SigLIP 2 NaFlex's.
"""

import math
from functools import lru_cache
from typing import Literal

Sizing = Literal["round", "fill"]
"""Sides rounded to whole cells, scaled only where the limits ask for it (Qwen-VL); or the most cells (NaFlex)."""

_SMALLEST_SCALE, _LARGEST_SCALE, _SCALE_STEP = 1e-6, 100.0, 1e-5
"""Ends of the search for NaFlex's scale, and how closely it is found."""


@lru_cache(maxsize=4096)
def native_grid(
    height: int, width: int, cell: int, min_pixels: int, max_pixels: int, sizing: Sizing
) -> tuple[int, int]:
    """Return (rows, columns) of cells.

    Worked numbers, cells of 28 pixels and limits of 3136 and 1003520: 480 x 640 (height x width) becomes 17 x 23 cells.

    Args:
        height: of the image, pixels.
        width: of the image, pixels.
        cell: side of the square that becomes one feature, pixels.
        min_pixels: smaller images are enlarged to at least so many; `fill` enlarges all to the most.
        max_pixels: larger images are shrunk to at most so many, except that no side falls below one cell.
        sizing: the rule.
    """
    if sizing == "fill":
        return _fill(height, width, cell, max_pixels // cell**2)
    rows, columns = round(height / cell), round(width / cell)
    if rows * columns * cell**2 > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        return max(1, math.floor(height / shrink / cell)), max(1, math.floor(width / shrink / cell))
    if rows * columns * cell**2 < min_pixels:
        enlarge = math.sqrt(min_pixels / (height * width))
        return math.ceil(height * enlarge / cell), math.ceil(width * enlarge / cell)
    return rows, columns


def _fill(height: int, width: int, cell: int, max_cells: int) -> tuple[int, int]:
    """Find the largest scale, by halving an interval, at which sides rounded up have at most `max_cells` cells."""

    def at(scale: float) -> tuple[int, int]:
        return max(1, math.ceil(height * scale / cell)), max(1, math.ceil(width * scale / cell))

    low, high = _SMALLEST_SCALE, _LARGEST_SCALE
    while high - low >= _SCALE_STEP:
        middle = (low + high) / 2
        rows, columns = at(middle)
        low, high = (middle, high) if rows * columns <= max_cells else (low, middle)
    return at(low)
