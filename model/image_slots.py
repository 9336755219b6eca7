"""Image arguments in every accepted form, brought to one flat batch plus the number of images per slot.

A slot is what one placeholder stands for. Shapes: N images, G slots, H x W pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class ImageSlots(NamedTuple):
    """Images of a batch in reading order."""

    pixels: Tensor
    """[N, 3, H, W]."""
    images_per_slot: tuple[int, ...]
    """G counts that add up to N."""


def to_image_slots(images: Tensor | Sequence[Tensor]) -> ImageSlots:
    """Flatten `images`.

    Args:
        images: [N, 3, H, W], one slot per image; [G, n, 3, H, W], one slot of n images per item; or a list whose
            items are [3, H, W] (a slot of one image) or [n, 3, H, W] (a slot of n images).

    Raises:
        ValueError: an item has another number of dimensions, or images differ in size.
    """
    if isinstance(images, Tensor):
        if images.ndim == 4:
            return ImageSlots(images, (1,) * images.shape[0])
        if images.ndim == 5:
            return ImageSlots(images.flatten(0, 1), (images.shape[1],) * images.shape[0])
        raise ValueError(f"expected images of 4 or 5 dimensions, found {tuple(images.shape)}")
    items = [image[None] if image.ndim == 3 else image for image in images]
    for index, item in enumerate(items):
        if item.ndim != 4 or item.shape[1:] != items[0].shape[1:]:
            raise ValueError(
                f"images[{index}] has shape {tuple(images[index].shape)}; list items must be [3, H, W] or [n, 3, H, W] "
                f"of one size, and images[0] is {tuple(images[0].shape)}"
            )
    if not items:
        raise ValueError("images is an empty list; pass None for a batch without images")
    return ImageSlots(torch.cat(items), tuple(item.shape[0] for item in items))
