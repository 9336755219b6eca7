"""Which features stand for an image: against transformers' own merging of tiles, for images of any size."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlavaNextModel, LlavaNextProcessor, LlavaOnevisionModel, LlavaOnevisionProcessor

from model.fusion.feature_layout import FeatureLayout, gather_features, join_layouts, layout_of, sources_of
from model.fusion.resolution import ImageView, Resolution, read_resolution

SIDE, WIDTH, TILE = 3, 5, 21
"""Patches per side of a tile, width of a feature, pixels per side of a tile."""
SIDES = st.one_of(st.integers(1, 97), st.integers(1, 50_000))
GRIDS = ((1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (1, 3), (5, 4))
"""Columns x rows."""


def resolution(aspect_ratio: str, merge: str = "spatial_unpad") -> Resolution:
    text = ",".join(f"({columns}x{rows})" for columns, rows in GRIDS) if "anyres" in aspect_ratio else None
    return read_resolution(
        aspect_ratio, text, merge, tile_size=TILE, tile_features=SIDE**2, tile_grid=SIDE
    )  # fmt: skip


def tile_features(num_tiles: int) -> Tensor:
    return torch.randn(num_tiles, SIDE**2, WIDTH, generator=torch.Generator().manual_seed(num_tiles))


def merged(layout: FeatureLayout, features: Tensor, newline: Tensor | None) -> Tensor:
    """Gather and put into reading order."""
    sources, places = sources_of(layout, features.shape[0] * features.shape[1])
    rows = gather_features(features.flatten(0, 1), newline, sources)
    assert sorted(places.tolist()) == list(range(layout.num_features))
    return torch.empty(layout.num_features, features.shape[-1]).index_copy(0, places, rows)


def theirs(**config: Any) -> Any:
    """Replace a model or processor of transformers: what its counting and merging look at."""
    pinpoints = [[TILE * rows, TILE * columns] for columns, rows in GRIDS]
    return SimpleNamespace(
        config=SimpleNamespace(
            image_grid_pinpoints=pinpoints,
            vision_config=SimpleNamespace(image_size=TILE, patch_size=TILE // SIDE),
        ),
        image_processor=SimpleNamespace(image_grid_pinpoints=pinpoints),
        patch_size=TILE // SIDE,
        num_additional_image_tokens=0,
        num_image_tokens=SIDE**2,
        **config,
    )


@given(SIDES, SIDES)
@example(1, 50_000)
@example(50_000, 1)
@example(198, 352)  # unpadding by rounding and by truncation differ here
def test_anyres_features_equal_those_of_llava_next(height: int, width: int) -> None:
    layout = layout_of(resolution("anyres"), ImageView(height, width))
    features, newline = tile_features(layout.num_tiles), torch.arange(WIDTH) + 100.0
    (wanted,), (count,) = LlavaNextModel.pack_image_features(
        theirs(), [features], torch.tensor([[height, width]]), "full", newline
    )
    assert torch.equal(merged(layout, features, newline), wanted)
    processor = theirs()
    processor._get_unpadded_features = LlavaNextProcessor._get_unpadded_features.__get__(processor)
    counted = LlavaNextProcessor._get_number_of_features(processor, height, width, TILE, TILE)
    assert layout.num_features == count == counted


def onevision_features(features: Tensor, height: int, width: int, newline: Tensor, most: int) -> Tensor | None:
    """Merge as transformers does; None for a very thin image, which it shrinks to nothing and then fails."""
    size, mode = torch.tensor([[height, width]]), f"anyres_max_{most}"
    try:
        merged_rows: list[Tensor]
        merged_rows, _ = LlavaOnevisionModel.pack_image_features(theirs(), [features], size, newline, mode)
    except RuntimeError:
        return None
    return merged_rows[0]


@given(SIDES, SIDES, st.integers(1, 25))
@example(50_000, 50_000, 9)
@example(1, 50_000, 1)
@example(50_000, 1, 1)
def test_anyres_max_features_equal_those_of_llava_onevision(height: int, width: int, most: int) -> None:
    layout = layout_of(resolution(f"anyres_max_{most}"), ImageView(height, width))
    features, newline = tile_features(layout.num_tiles), torch.arange(WIDTH) + 100.0
    wanted = onevision_features(features, height, width, newline, most)
    if wanted is None:
        lines = len(layout.newline_at)
        assert 1 in (lines, len(layout.blended) // lines)  # one line of it is kept here
        return
    assert torch.allclose(merged(layout, features, newline), wanted, atol=1e-5)
    processor = theirs(vision_aspect_ratio=f"anyres_max_{most}")
    processor._get_unpadded_features = LlavaOnevisionProcessor._get_unpadded_features.__get__(processor)
    assert layout.num_features == LlavaOnevisionProcessor._get_number_of_features(processor, height, width, TILE, TILE)


@given(st.integers(1, 9), st.integers(1, 4))
def test_video_features_equal_those_of_llava_onevision(side: int, num_frames: int) -> None:
    one = read_resolution("pad", None, "spatial_unpad", tile_size=TILE, tile_features=side**2, tile_grid=side)
    layouts = [layout_of(one, ImageView(7, 9, role)) for role in one.roles(num_frames, is_video=True)]
    features = torch.randn(num_frames, side**2, WIDTH, generator=torch.Generator().manual_seed(side))
    joined = join_layouts(layouts, list(range(num_frames)), side**2)
    got = merged(joined, features, torch.full((WIDTH,), 7.0))
    model = SimpleNamespace(
        config=SimpleNamespace(vision_config=SimpleNamespace(image_size=side, patch_size=1))
    )  # fmt: skip
    wanted = LlavaOnevisionModel.apply_pooling(model, features).flatten(0, 1)  # type: ignore[arg-type]
    assert torch.allclose(got[:-1], wanted, atol=1e-6)
    assert got[-1].tolist() == [7.0] * WIDTH
    assert len(got) == num_frames * math.ceil(side / 2) ** 2 + 1


@given(SIDES, SIDES)
def test_flat_merge_keeps_every_tile_in_order(height: int, width: int) -> None:
    for aspect_ratio in ("pad", "crop", "anyres", "dynamic_1_6"):
        policy = resolution(aspect_ratio, "flat")
        layout = layout_of(policy, ImageView(height, width))
        assert layout.num_tiles == policy.tiling(ImageView(height, width)).num_tiles
        features = tile_features(layout.num_tiles)
        assert torch.equal(merged(layout, features, None), features.flatten(0, 1))
        assert sources_of(layout, layout.num_tiles * SIDE**2)[0] is None  # so nothing is copied


@given(SIDES, SIDES, st.sampled_from(["spatial", "spatial_unpad"]))
def test_dynamic_tiles_read_row_by_row_then_the_overview(height: int, width: int, merge: str) -> None:
    policy = resolution("dynamic_1_6", merge)
    view = ImageView(height, width)
    tiling, layout = policy.tiling(view), layout_of(policy, view)
    features, newline = tile_features(layout.num_tiles), torch.full((WIDTH,), 7.0)
    rows = []
    for row in range(tiling.rows * SIDE):
        for column in range(tiling.columns * SIDE):
            tile = row // SIDE * tiling.columns + column // SIDE
            rows.append(features[tile, row % SIDE * SIDE + column % SIDE])
        rows += [newline] if merge == "spatial_unpad" else []
    wanted = [*rows, *(features[-1] if tiling.overview else [])]
    assert torch.equal(merged(layout, features, newline), torch.stack(wanted))


def test_one_tile_ends_with_a_newline_when_there_is_one() -> None:
    features, newline = tile_features(1), torch.full((WIDTH,), 7.0)
    for policy, view in ((resolution("pad"), ImageView(3, 5)), (resolution("anyres"), ImageView(3, 5, "single"))):
        got = merged(layout_of(policy, view), features, newline)
        assert torch.equal(got, torch.cat([features[0], newline[None]]))
    plain = layout_of(resolution("pad", "spatial"), ImageView(3, 5))
    assert torch.equal(merged(plain, features, None), features[0])


def test_images_of_a_batch_follow_each_other_and_may_share_tiles() -> None:
    policy = read_resolution(
        "anyres", "(1x3),(3x1)", "spatial_unpad", tile_size=TILE, tile_features=SIDE**2, tile_grid=SIDE
    )
    wide, tall = layout_of(policy, ImageView(20, 90)), layout_of(policy, ImageView(90, 20))
    assert (wide.num_tiles, tall.num_tiles) == (4, 4)
    features, newline = tile_features(8), torch.full((WIDTH,), 7.0)
    joined = join_layouts([wide, tall, wide], [4, 0, 4], SIDE**2)
    parts = [merged(wide, features[4:], newline), merged(tall, features[:4], newline)]
    assert joined.num_tiles == 8
    assert torch.equal(merged(joined, features, newline), torch.cat([*parts, parts[0]]))


def test_gradients_reach_features_and_newline_once_per_use() -> None:
    layout = layout_of(resolution("anyres_max_1"), ImageView(90, 90))
    assert len(layout.blended)
    features = tile_features(layout.num_tiles).requires_grad_()
    newline = torch.zeros(WIDTH, requires_grad=True)
    merged(layout, features, newline).sum().backward()
    assert newline.grad is not None
    assert newline.grad.tolist() == [float(len(layout.newline_at))] * WIDTH
    assert features.grad is not None
    assert features.grad[0].eq(1).all()
    assert math.isclose(float(features.grad[1:].sum()), len(layout.blended) * WIDTH, rel_tol=1e-5)


def test_newline_takes_part_without_images() -> None:
    newline = torch.ones(WIDTH, requires_grad=True)
    rows = gather_features(torch.zeros(0, WIDTH), newline, None)
    assert rows.shape == (0, WIDTH)
    rows.sum().backward()
    assert newline.grad is not None
    assert newline.grad.tolist() == [0.0] * WIDTH


def test_frames_without_a_grid_are_refused() -> None:
    policy = read_resolution("pad", None, "flat", tile_size=TILE, tile_features=10, tile_grid=None)
    with pytest.raises(ValueError, match="need features on a square grid"):
        layout_of(policy, ImageView(3, 5, "frame"))


def test_images_with_and_without_shrunk_features_follow_each_other() -> None:
    policy = resolution("anyres_max_1")
    plain, shrunk = layout_of(policy, ImageView(10, 10)), layout_of(policy, ImageView(90, 90))
    assert (len(plain.blended), len(shrunk.plain)) == (0, SIDE**2)
    features, newline = tile_features(plain.num_tiles + shrunk.num_tiles), torch.full((WIDTH,), 7.0)
    joined = join_layouts([plain, shrunk, plain], [0, plain.num_tiles, 0], SIDE**2)
    parts = [merged(plain, features[: plain.num_tiles], newline), merged(shrunk, features[plain.num_tiles :], newline)]
    assert torch.equal(merged(joined, features, newline), torch.cat([*parts, parts[0]]))


def test_sources_on_another_device_keep_their_numbers() -> None:
    sources, _ = sources_of(layout_of(resolution("anyres_max_1"), ImageView(90, 90)), 5 * SIDE**2)
    assert sources is not None
    moved = sources.to("meta")
    assert [value.device.type for value in moved if isinstance(value, Tensor)] == ["meta"] * 3
    assert (moved.num_rows, moved.num_newlines) == (5 * SIDE**2, sources.num_newlines)


def test_layouts_say_how_many_tiles_they_are_made_of() -> None:
    for policy, view, num_tiles in (
        (resolution("pad"), ImageView(3, 5), 1),
        (resolution("pad"), ImageView(3, 5, "last_frame"), 1),
        (resolution("dynamic_1_6"), ImageView(21, 21), 1),
        (resolution("dynamic_1_6"), ImageView(42, 84), 3),
        (resolution("anyres"), ImageView(42, 42), 5),
    ):
        assert layout_of(policy, view).num_tiles == policy.tiling(view).num_tiles == num_tiles
