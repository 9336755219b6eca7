"""Pixels on their way into a tower: uint8 as decoded becomes normalised floats on the tower's device.

Resizing and cropping are done before, on the data side.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.image_processing_utils import BaseImageProcessor


class PixelStats(NamedTuple):
    """Per-channel normalisation of pixels scaled to 0..1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def read_pixel_stats(name: str) -> PixelStats | None:
    """Read the normalisation that a tower was trained with from its preprocessor_config.json, if it has one."""
    try:
        values, _ = BaseImageProcessor.get_image_processor_dict(name)
    except OSError:
        return None
    return PixelStats(tuple(values["image_mean"]), tuple(values["image_std"]))


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
    """Turn uint8 pixels [..., 3, H, W] into normalised values of `dtype`, computed in float32 on the pixels' device."""
    mean = torch.tensor(stats.mean, device=pixels.device)[:, None, None]
    std = torch.tensor(stats.std, device=pixels.device)[:, None, None]
    return ((pixels.float() - 255.0 * mean) / (255.0 * std)).to(dtype)
