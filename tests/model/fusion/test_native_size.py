"""The size function of native resolution against the processors' own, on random sizes."""

import random

import pytest
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

from model.fusion.feature_layout import layout_of
from model.fusion.native_size import Sizing, native_grid
from model.fusion.resolution import ImageView, Resolution, read_resolution

NUM_SIZES = 10_000


def random_sizes(seed: int) -> list[tuple[int, int]]:
    generator = random.Random(seed)
    return [(int(2 ** generator.uniform(0, 13)), int(2 ** generator.uniform(0, 13))) for _ in range(NUM_SIZES)]


@pytest.mark.parametrize(("cell", "limits"), [(28, (3136, 1003520)), (32, (65536, 16777216)), (28, (784, 784))])
def test_rounded_sizes_equal_those_of_qwens_processor(cell: int, limits: tuple[int, int]) -> None:
    compared = 0
    for height, width in random_sizes(seed=1):
        if max(height, width) > 200 * min(height, width):  # which its processor refuses
            continue
        grid = native_grid(height, width, cell, *limits, "round")
        assert (grid[0] * cell, grid[1] * cell) == smart_resize(height, width, cell, *limits), (height, width)
        compared += 1
    assert compared > 0.8 * NUM_SIZES


@pytest.mark.parametrize(("patch", "most"), [(16, 256), (14, 1024), (16, 7)])
def test_filled_sizes_equal_those_of_naflex_processor(patch: int, most: int) -> None:
    for height, width in random_sizes(seed=2):
        grid = native_grid(height, width, patch, 1, most * patch**2, "fill")
        wanted = get_image_size_for_max_num_patches(height, width, patch, most)
        assert (grid[0] * patch, grid[1] * patch) == wanted, (height, width)


def resolution(merge: str = "flat", sizing: Sizing | None = "round") -> Resolution:
    return read_resolution("native_3136_50176", None, merge, tile_size=28, tile_features=1, tile_grid=1, sizing=sizing)


def test_an_image_has_one_feature_per_cell_row_by_row_and_a_newline_after_each_row() -> None:
    view = ImageView(100, 150)
    assert layout_of(resolution(), view).num_features == 4 * 5
    assert layout_of(resolution(), view).plain.tolist() == list(range(20))
    lines = layout_of(resolution("spatial_unpad"), view)
    assert lines.num_features == 4 * 6
    assert lines.newline_at.tolist() == [5, 11, 17, 23]


def test_native_images_and_towers_of_squares_are_refused_together() -> None:
    with pytest.raises(ValueError, match="the vision tower takes squares"):
        resolution(sizing=None)
    with pytest.raises(ValueError, match="native resolution: use native_MIN_MAX"):
        read_resolution("pad", None, "flat", tile_size=28, tile_features=1, tile_grid=1, sizing="fill")
    with pytest.raises(ValueError, match="at least the 784 pixels of one cell"):
        read_resolution("native_1_700", None, "flat", tile_size=28, tile_features=1, tile_grid=1, sizing="round")
    with pytest.raises(ValueError, match="MIN <= MAX"):
        read_resolution("native_900_800", None, "flat", tile_size=28, tile_features=1, tile_grid=1, sizing="round")
