"""A perceptual hash of an image: what stays when it is stored again, scaled, or slightly changed in brightness.

The signs of the low frequencies of its brightness (a discrete cosine transform of 32 x 32 means), and the mean colours
of sixteen fields, which tell apart pictures of the same shapes in other colours. Comparing many is left to
`pipeline.index.hygiene.duplicates`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from pipeline.samples.image import Pixels

HASH_BITS = 64
PRINT_BYTES = 48
_SIDE = 32
_FREQUENCIES = 9
"""Rows and columns of the transform that are looked at; of these the mean and the last corner are left out."""
_FLAT = 2.0
"""Standard deviation of the 32 x 32 means, grey levels, below which an image shows nothing to compare."""


class ImagePrint(NamedTuple):
    """What two copies of an image have nearly in common."""

    hash: int
    """64 bits; 0 for an image of one colour, which is compared with nothing."""
    colours: bytes
    """uint8 `[4, 4, 3]`, the mean colours of its fields."""


NO_PRINT = ImagePrint(0, bytes(PRINT_BYTES))
"""Of an image whose pixels were not decoded."""


def print_of(rgb: Pixels) -> ImagePrint:
    """Return the print of an image, uint8 `[H, W, 3]`."""
    means = _means(rgb)
    colours = means.reshape(4, _SIDE // 4, 4, _SIDE // 4, 3).mean(axis=(1, 3)).round().astype(np.uint8).tobytes()
    grey = means @ np.array([0.299, 0.587, 0.114])
    if grey.std() < _FLAT:
        return ImagePrint(0, colours)
    low = (_COSINES @ grey @ _COSINES.T).ravel()[_CHOSEN]
    bits = low > np.median(low)
    return ImagePrint(int.from_bytes(np.packbits(bits).tobytes(), "big"), colours)


def _means(rgb: Pixels) -> npt.NDArray[np.float64]:
    """Shrink an image to the means of 32 x 32 fields, float64 `[32, 32, 3]`."""
    image = PillowImage.fromarray(np.ascontiguousarray(rgb))
    small = image.resize((_SIDE, _SIDE), PillowImage.Resampling.BOX, reducing_gap=1.0)
    return np.asarray(small, dtype=np.float64)


def _cosines() -> npt.NDArray[np.float64]:
    """Return the first rows of the cosine transform of 32 values, float64 `[9, 32]`."""
    places = (2 * np.arange(_SIDE) + 1) * np.pi / (2 * _SIDE)
    return np.cos(np.arange(_FREQUENCIES)[:, None] * places)


def _chosen() -> npt.NDArray[np.int64]:
    """Return which of the 81 frequencies make the 64 bits: the lowest ones but the mean."""
    rows, columns = np.divmod(np.arange(_FREQUENCIES * _FREQUENCIES), _FREQUENCIES)
    order = np.lexsort((rows, np.maximum(rows, columns), rows + columns))
    return np.sort(order[1 : HASH_BITS + 1])


_COSINES, _CHOSEN = _cosines(), _chosen()
