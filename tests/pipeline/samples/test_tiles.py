"""Tiles cut from images: at most one grey level from the image processors of `transformers` (Pillow backend).

That is for pictures. Pure noise differs by up to five where an image is squeezed more in height than in width, because
Pillow then resizes rows before columns, and overshoot is clipped between the two passes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from model.fusion.resolution import ImageView, Resolution, read_resolution
from pipeline.samples.fit import ImageSpec, fit_tiles
from pipeline.samples.image import Pixels
from tests.pipeline.samples.pictures import smooth_rgb

TILE = 28
SPEC = ImageSpec(TILE, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
GRIDS = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
SIZES = [(28, 28), (61, 37), (37, 131), (200, 11), (9, 300), (5, 3), (300, 301), (1, 1)]


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tiles(aspect_ratio: str, rgb: Pixels, role: Any = "image") -> Pixels:
    height, width, _ = rgb.shape
    pinpoints = [[TILE * columns, TILE * rows] for columns, rows in GRIDS] if "anyres" in aspect_ratio else None
    merge = "flat" if "max" not in aspect_ratio else "spatial"
    policy: Resolution = read_resolution(
        aspect_ratio, pinpoints, merge, tile_size=TILE, tile_features=4, tile_grid=2
    )  # fmt: skip
    tiling = policy.tiling(ImageView(height, width, role))
    cut = fit_tiles(rgb, SPEC, tiling)
    assert len(cut) == tiling.num_tiles
    assert cut.flags["C_CONTIGUOUS"]
    return cut


def assert_close(found: Pixels, expected: Pixels, grey_levels: int = 1) -> None:
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= grey_levels


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("kind", [LlavaNextImageProcessorPil, LlavaOnevisionImageProcessorPil])
def test_anyres_tiles_are_within_one_grey_level_of_transformers(kind: Any, height: int, width: int) -> None:
    processor = kind(
        size={"height": TILE, "width": TILE},
        crop_size={"height": TILE, "width": TILE},
        do_center_crop=kind is LlavaNextImageProcessorPil,
        image_grid_pinpoints=[[TILE * rows, TILE * columns] for columns, rows in GRIDS],
        do_rescale=False,
        do_normalize=False,
        resample=3,
    )
    for rgb, grey_levels in ((smooth_rgb(height, width), 1), (noise(height, width), 5)):
        (wanted,) = processor(Image.fromarray(rgb))["pixel_values"]
        assert_close(tiles("anyres", rgb), np.moveaxis(np.asarray(wanted), 1, -1), grey_levels)


def test_one_of_several_images_is_padded_as_transformers_does() -> None:
    processor: Any = LlavaOnevisionImageProcessorPil(
        size={"height": TILE, "width": TILE}, do_rescale=False, do_normalize=False, image_mean=list(SPEC.mean)
    )
    image = Image.fromarray(smooth_rgb(61, 37))
    wanted = np.moveaxis(np.asarray(processor([[image, image]])["pixel_values"][0]), 1, -1)
    assert_close(tiles("anyres_max_4", smooth_rgb(61, 37), "single"), wanted)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_dynamic_tiles_are_the_stretched_image_cut_up(height: int, width: int) -> None:
    cut = tiles("dynamic_1_6", smooth_rgb(height, width))
    image = Image.fromarray(smooth_rgb(height, width))
    policy = read_resolution("dynamic_1_6", None, "flat", tile_size=TILE, tile_features=4, tile_grid=2)
    tiling = policy.tiling(ImageView(height, width))
    whole = np.asarray(image.resize((tiling.columns * TILE, tiling.rows * TILE), Image.Resampling.BICUBIC))
    parts = [
        whole[row : row + TILE, column : column + TILE]
        for row in range(0, len(whole), TILE)
        for column in range(0, whole.shape[1], TILE)
    ]
    if len(parts) > 1:
        parts.append(np.asarray(image.resize((TILE, TILE), Image.Resampling.BICUBIC)))
    assert_close(cut, np.stack(parts))
