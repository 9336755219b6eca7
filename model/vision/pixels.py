"""Pixels on their way into a tower: uint8 [H, W, 3] as decoded becomes normalised floats [3, H, W] on its device.

Resizing and cropping are done before, on the data side.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.image_processing_utils import BaseImageProcessor

from model.vision.image_spec import ImageSpec


class PixelStats(NamedTuple):
    """Per-channel normalisation of pixels scaled to 0..1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def read_pixel_stats(name: str) -> PixelStats | None:
    """Read the normalisation that a tower was trained with from its preprocessor_config.json, if it has one.

    Raises:
        ValueError: see `ImageSpec.from_preprocessor_config`.
    """
    try:
        values, _ = BaseImageProcessor.get_image_processor_dict(name)
    except OSError:
        return None
    spec = ImageSpec.from_preprocessor_config(values)
    return PixelStats(spec.mean, spec.std)


def pixel_stats_of(config: Any) -> PixelStats:
    """Return the normalisation that a LLaVA config carries.

    Raises:
        ValueError: the tower came without it.
    """
    if config.mm_image_mean is None or config.mm_image_std is None:
        raise ValueError(
            f"uint8 pixels need the tower's normalisation, but {config.mm_vision_tower} came without a "
            "preprocessor_config.json that has image_mean and image_std; copy it into that folder and build again"
        )
    return PixelStats(tuple(config.mm_image_mean), tuple(config.mm_image_std))


def normalize_pixels(pixels: Tensor, stats: PixelStats, dtype: torch.dtype) -> Tensor:
    """Turn pixels as they are decoded into the tower's input, computed in float32 on the pixels' device.

    Args:
        pixels: uint8 [..., H, W, 3].
        stats: normalisation of the tower.
        dtype: of the result.

    Returns:
        [..., 3, H, W]; in memory the channels stay last, so that nothing is moved.

    Raises:
        ValueError: the last dimension is not that of the colours.
    """
    if pixels.shape[-1] != 3:
        raise ValueError(f"uint8 pixels must be [..., H, W, 3], found {list(pixels.shape)}; floats are [..., 3, H, W]")
    mean = torch.tensor(stats.mean, device=pixels.device)
    std = torch.tensor(stats.std, device=pixels.device)
    return ((pixels.float() - 255.0 * mean) / (255.0 * std)).to(dtype).movedim(-1, -3)
