"""Which tiles an image becomes: against transformers' own choice of pin points, and InternVL's rule written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution

from model.fusion.resolution import ImageView, Resolution, Tiling, read_resolution

SIDES = st.one_of(st.integers(1, 97), st.integers(1, 50_000))


def resolution(aspect_ratio: str, merge: str = "spatial_unpad", pinpoints: object = None) -> Resolution:
    return read_resolution(aspect_ratio, pinpoints, merge, tile_size=21, tile_features=9, tile_grid=3)  # type: ignore[arg-type]


@given(
    SIDES,
    SIDES,
    st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=12),
)
@example(1, 50_000, [(1, 2), (2, 1)])
@example(21, 21, [(1, 2), (2, 1)])  # a tie, decided by the order
def test_anyres_tiles_are_those_of_transformers(height: int, width: int, grids: list[tuple[int, int]]) -> None:
    ours = resolution("anyres", pinpoints=tuple((21 * columns, 21 * rows) for columns, rows in grids))
    tiling = ours.tiling(ImageView(height, width))
    best = select_best_resolution((height, width), [(21 * rows, 21 * columns) for columns, rows in grids])
    assert (tiling.rows * 21, tiling.columns * 21) == best
    image = np.empty((3, height, 1)) if width == 1 else np.broadcast_to(np.zeros(1), (3, height, width))
    assert tiling.content == get_patch_output_size(image, best, "channels_first")
    assert (tiling.overview, tiling.overview_last) == ("stretch", False)
    assert tiling.num_tiles == 1 + tiling.rows * tiling.columns


@given(SIDES, SIDES, st.integers(1, 3), st.integers(3, 13))
@example(21, 21, 1, 6)
@example(500, 625, 2, 4)
def test_dynamic_tiles_have_the_closest_aspect_ratio(height: int, width: int, least: int, most: int) -> None:
    tiling = resolution(f"dynamic_{least}_{most}").tiling(ImageView(height, width))
    number = tiling.rows * tiling.columns
    assert least <= number <= most
    allowed = [(c, r) for c in range(1, most + 1) for r in range(1, most + 1) if least <= c * r <= most]
    nearest = min(abs(width / height - columns / rows) for columns, rows in allowed)
    assert abs(width / height - tiling.columns / tiling.rows) == nearest
    equal = [c * r for c, r in allowed if abs(width / height - c / r) == nearest]
    filled = [n for n in equal if height * width > 0.5 * 21 * 21 * n]
    assert number == max(filled, default=min(equal)) or len(set(equal)) < len(equal)
    assert tiling.content == (tiling.rows * 21, tiling.columns * 21)
    assert (tiling.overview, tiling.overview_last) == ("stretch" if number > 1 else None, True)


def test_worked_numbers_of_the_documentation() -> None:
    anyres = read_resolution("anyres", None, "flat", tile_size=336, tile_features=576, tile_grid=24)
    assert anyres.tiling(ImageView(480, 640)) == Tiling("stretch", False, 2, 2, (504, 672))
    dynamic = read_resolution("dynamic_1_6", None, "flat", tile_size=336, tile_features=576, tile_grid=24)
    assert dynamic.tiling(ImageView(480, 640)) == Tiling("stretch", True, 2, 3, (672, 1008))
    assert dynamic.tiling(ImageView(480, 480)).num_tiles == 5  # 2 x 2 and an overview: the image fills half of them
    assert dynamic.tiling(ImageView(200, 200)).num_tiles == 1


def test_single_tiles() -> None:
    found = resolution("pad").tiling(ImageView(3, 500))
    assert (found, found.num_tiles) == (("pad", False, 0, 0, (0, 0)), 1)
    assert resolution("pad").tiling(ImageView(3, 500)) == Tiling("pad")
    assert resolution("crop").tiling(ImageView(3, 500, "frame")) == Tiling("crop")
    assert resolution("anyres").tiling(ImageView(3, 500, "single")) == Tiling("pad")
    assert resolution("dynamic_1_6").tiling(ImageView(3, 500, "last_frame")) == Tiling("stretch")


def test_roles_of_a_samples_images() -> None:
    assert resolution("anyres").roles(2, is_video=False) == ("image", "image")
    assert resolution("anyres_max_4").roles(1, is_video=False) == ("image",)
    assert resolution("anyres_max_4").roles(2, is_video=False) == ("single",) * 2
    assert resolution("dynamic_1_4").roles(2, is_video=False) == ("image",) * 2
    assert resolution("pad").roles(3, is_video=True) == ("frame", "frame", "last_frame")
    assert resolution("pad").roles(0, is_video=True) == ()


def test_pinpoints_as_ranges_lists_and_defaults() -> None:
    assert resolution("anyres", pinpoints="(1x2),...,(2x4)").pinpoints == tuple(
        (21 * columns, 21 * rows) for columns in (1, 2) for rows in (2, 3, 4)
    )
    assert resolution("anyres", pinpoints="(1x2), (3x1)").pinpoints == ((21, 42), (63, 21))
    assert resolution("anyres", pinpoints=[[42, 21]]).pinpoints == ((42, 21),)
    assert resolution("anyres").pinpoints == ((21, 42), (42, 21), (42, 42), (63, 21), (21, 63))
    assert len(resolution("anyres_max_9").pinpoints) == 36
    assert math.prod(resolution("anyres_max_9").pinpoints[-1]) == 36 * 21 * 21


@pytest.mark.parametrize(
    ("aspect_ratio", "merge", "pinpoints", "message"),
    [
        ("square", "flat", None, "known: pad, crop, anyres"),
        ("anyres_max_0", "spatial_unpad", None, "known: pad, crop, anyres"),
        ("dynamic_7_3", "flat", None, "MIN <= MAX"),
        ("anyres", "diagonal", None, "known: flat, spatial, spatial_unpad"),
        ("anyres_max_9", "flat", None, "must be spatial_unpad"),
        ("pad", "flat", [[21, 21]], "belong to anyres"),
        ("anyres", "flat", [[21, 22]], r"\[\[21, 22\]\].*multiples of the tower's 21"),
        ("anyres", "flat", [], "expected pairs"),
        ("anyres", "flat", "1x2", "expected .1x2.,.2x1."),
    ],
)
def test_illegal_fields_are_refused(aspect_ratio: str, merge: str, pinpoints: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolution(aspect_ratio, merge, pinpoints)


def test_spatial_merge_without_a_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="needs features on a square grid"):
        read_resolution("anyres", None, "spatial", tile_size=21, tile_features=10, tile_grid=None)


def test_tiled_and_newline_policies_are_told_apart() -> None:
    assert [resolution(name).tiles_images for name in ("pad", "crop", "anyres", "anyres_max_9", "dynamic_1_6")] == [
        False, False, True, True, True,
    ]  # fmt: skip
    assert [resolution("anyres", merge).has_newline for merge in ("flat", "spatial", "spatial_unpad")] == [
        False, False, True,
    ]  # fmt: skip


def test_limits_that_a_policy_does_not_have_are_its_defaults() -> None:
    limits = {name: resolution(name) for name in ("pad", "anyres", "anyres_max_9", "dynamic_2_6")}
    assert [(one.min_tiles, one.max_tiles) for one in limits.values()] == [(1, None), (1, None), (1, 9), (2, 6)]
    bare = Resolution("dynamic", 21, 9, 3, max_tiles=6)
    assert (bare.merge, bare.min_tiles, bare.has_newline, bare.pinpoints) == ("flat", 1, False, ())
    assert bare.tiling(ImageView(21, 21)).num_tiles == 1


def test_dynamic_of_equally_near_grids_takes_the_larger_only_if_the_image_has_half_its_pixels() -> None:
    policy = resolution("dynamic_1_4")  # a square is as near to 1 x 1 as to 2 x 2; half of its pixels are 882
    assert policy.tiling(ImageView(29, 29)).num_tiles == 1
    assert policy.tiling(ImageView(30, 30)).num_tiles == 5
    even = read_resolution("dynamic_1_8", None, "flat", tile_size=2, tile_features=9, tile_grid=3)
    assert even.tiling(ImageView(4, 2)).num_tiles == 3  # 8 pixels are no more than half of the 2 x 4 tiles' 32


def test_dynamic_range_of_one_number_is_legal() -> None:
    assert resolution("dynamic_3_3").tiling(ImageView(21, 21)).num_tiles == 4


@pytest.mark.parametrize("text", ["[(21, 42), (63, 21)]", "[[21, 42], [63, 21]]"])
def test_pinpoints_written_out_as_text_are_read_in_pixels(text: str) -> None:
    assert resolution("anyres", pinpoints=text).pinpoints == ((21, 42), (63, 21))


@pytest.mark.parametrize("text", ["[(21, 42), (63", "[(21.5, 42)]", '[("a", 42)]', "[21, 42]"])
def test_pinpoints_as_text_that_are_not_pairs_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="image_grid_pinpoints"):
        resolution("anyres", pinpoints=text)
