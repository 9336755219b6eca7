"""Tiles cut from images: at most one grey level from the image processors of `transformers` (Pillow backend)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from model.resolution import ImageView, Resolution, read_resolution
from pipeline.samples.fit import ImageSpec, fit_tiles
from pipeline.samples.image import Pixels
from tests.pipeline.samples.pictures import smooth_rgb

TILE = 28
SPEC = ImageSpec(TILE, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
GRIDS = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
SIZES = [(28, 28), (61, 37), (37, 131), (200, 11), (9, 300), (5, 3), (300, 301), (1, 1)]


def tiles(aspect_ratio: str, height: int, width: int, role: Any = "image") -> Pixels:
    pinpoints = [[TILE * columns, TILE * rows] for columns, rows in GRIDS] if "anyres" in aspect_ratio else None
    merge = "flat" if "max" not in aspect_ratio else "spatial"
    policy: Resolution = read_resolution(
        aspect_ratio, pinpoints, merge, tile_size=TILE, tile_features=4, tile_grid=2
    )  # fmt: skip
    tiling = policy.tiling(ImageView(height, width, role))
    cut = fit_tiles(smooth_rgb(height, width), SPEC, tiling)
    assert len(cut) == tiling.num_tiles
    assert cut.flags["C_CONTIGUOUS"]
    return cut


def assert_close(found: Pixels, expected: Pixels) -> None:
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


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
    (wanted,) = processor(Image.fromarray(smooth_rgb(height, width)))["pixel_values"]
    assert_close(tiles("anyres", height, width), np.asarray(wanted))


def test_one_of_several_images_is_padded_as_transformers_does() -> None:
    processor: Any = LlavaOnevisionImageProcessorPil(
        size={"height": TILE, "width": TILE}, do_rescale=False, do_normalize=False, image_mean=list(SPEC.mean)
    )
    image = Image.fromarray(smooth_rgb(61, 37))
    wanted = np.asarray(processor([[image, image]])["pixel_values"][0])
    assert_close(tiles("anyres_max_4", 61, 37, "single"), wanted)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_dynamic_tiles_are_the_stretched_image_cut_up(height: int, width: int) -> None:
    cut = tiles("dynamic_1_6", height, width)
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
    assert_close(cut, np.stack(parts).transpose(0, 3, 1, 2))
