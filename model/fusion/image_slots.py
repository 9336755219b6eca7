"""Image arguments in every accepted form, brought to one flat batch plus what each slot shows.

A slot is what one placeholder stands for: an image, in one tile or several, or several images. Shapes: N images or
tiles, G slots, H x W pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from model.fusion.feature_layout import FeatureLayout, join_layouts, layout_of
from model.fusion.resolution import ImageView, Resolution, grids_of

ImageSizes = Tensor | Sequence[tuple[int, int] | ImageView]
"""Per slot, the size (height, width) that an image had before it was cut into tiles, pixels."""

_ONE_TILE = ImageView(1, 1, "single")


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


def slot_layouts(
    images_per_slot: Sequence[int], image_sizes: ImageSizes | None, resolution: Resolution
) -> list[FeatureLayout]:
    """Lay out the features of every slot.

    A single tile of a model that cuts images into tiles is an image that was not cut. Without sizes, several images of
    a slot follow each other.

    Args:
        images_per_slot: tiles, or images, of each slot.
        image_sizes: one per slot.
        resolution: of the model.

    Raises:
        ValueError: sizes are missing, or slots have other numbers of tiles than their sizes ask for.
    """
    if image_sizes is None:
        if resolution.tiles_images and resolution.merge != "flat" and max(images_per_slot) > 1:
            raise ValueError(
                f"a slot has {max(images_per_slot)} tiles, whose features are merged by the image's size; pass "
                "image_sizes, one (height, width) per slot"
            )
        one = layout_of(resolution, _ONE_TILE)
        return [join_layouts([one] * n, list(range(n)), resolution.tile_features) for n in images_per_slot]
    sizes = image_sizes.tolist() if isinstance(image_sizes, Tensor) else list(image_sizes)
    if len(sizes) != len(images_per_slot):
        raise ValueError(f"{len(sizes)} image_sizes for {len(images_per_slot)} image slots; pass one per slot")
    views = [_view(size, count, resolution) for size, count in zip(sizes, images_per_slot, strict=True)]
    layouts = [layout_of(resolution, view) for view in views]
    for slot, (view, layout, count) in enumerate(zip(views, layouts, images_per_slot, strict=True)):
        if layout.num_tiles != count:
            raise ValueError(
                f"image slot {slot}: {count} tiles, but an image of {view.height} x {view.width} pixels (height x "
                f"width) has {layout.num_tiles}; cut it with this model's image_aspect_ratio and image_grid_pinpoints"
            )
    return layouts


def slot_grids(image_sizes: ImageSizes | None, resolution: Resolution) -> list[tuple[int, int]]:
    """Return the rows and columns of the tiles of each slot's image, for a tower of native resolution.

    Raises:
        ValueError: sizes are missing.
    """
    if image_sizes is None:
        raise ValueError(
            "images of native resolution are placed by their sizes; pass image_sizes, one (height, width) in pixels "
            "for each"
        )
    sizes = image_sizes.tolist() if isinstance(image_sizes, Tensor) else list(image_sizes)
    return grids_of([size if isinstance(size, ImageView) else ImageView(*size) for size in sizes], resolution)


def _view(size: tuple[int, int] | ImageView, num_tiles: int, resolution: Resolution) -> ImageView:
    if isinstance(size, ImageView):
        return size
    height, width = size
    view = ImageView(height, width)
    is_cut = resolution.tiling(view).num_tiles > 1
    return ImageView(height, width, "single") if is_cut and num_tiles == 1 else view
