"""Which features stand for an image, and in which order: rows of its tiles, rows blended from four, and newlines.

A layout is index arithmetic on the CPU, a pure function of the image's size; on the device, features are then gathered
(`gather_features`) without a single value being asked for. Sources: LLaVA-NeXT `llava_arch.py`; unpadding and bilinear
shrinking round as transformers does (`modeling_llava_next.py`, `modeling_llava_onevision.py`).

Shapes: U tiles, P features per tile, F features of one image, M of a batch, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from model.fusion.resolution import ImageView, Resolution, Tiling

_SHRINK_BEYOND = 1.1
"""`anyres_max_N` shrinks when the sides of the grid exceed those of N tiles by more than this factor."""


class FeatureLayout(NamedTuple):
    """The features of one image, or of several one after the other; tensors are int64 on the CPU."""

    num_tiles: int
    num_features: int
    """F."""
    plain: Tensor
    """[A] feature rows, tile * P + patch, that are used as they are."""
    plain_at: Tensor
    """[A] their places, 0..F-1."""
    blended: Tensor
    """[B, 4] feature rows that are averaged with `weights`."""
    weights: Tensor
    """[B, 4] float32."""
    blended_at: Tensor
    """[B]."""
    newline_at: Tensor
    """[C] where the learnt newline goes."""


class RowSources(NamedTuple):
    """What a batch's image features are gathered from; plain rows first, then blended ones, then newlines."""

    num_rows: int
    """Feature rows U * P to gather from."""
    plain: Tensor
    """[A] int64."""
    blended: Tensor
    """[B, 4] int64."""
    weights: Tensor
    """[B, 4] float32."""
    num_newlines: int

    def to(self, device: torch.device | str, non_blocking: bool = False) -> RowSources:
        """Return the sources with their tensors on `device`."""
        moved = [value.to(device, non_blocking=non_blocking) if isinstance(value, Tensor) else value for value in self]
        return RowSources._make(moved)


@lru_cache(maxsize=128)
def layout_of(resolution: Resolution, view: ImageView) -> FeatureLayout:
    """Lay out the features of an image."""
    tiling = resolution.tiling(view)
    if view.role in ("frame", "last_frame"):
        return _frame_layout(resolution, view)
    num_patches = resolution.tile_features
    if resolution.merge == "flat":
        return _plain_layout(tiling.num_tiles, torch.arange(tiling.num_tiles * num_patches))
    if not tiling.rows:
        return _with_newline(_plain_layout(1, torch.arange(num_patches)), resolution)
    first_of_grid = 0 if tiling.overview is None or tiling.overview_last else 1
    grid = _grid_layout(resolution, tiling, view, first_of_grid)
    if tiling.overview is None:
        return grid
    first = (tiling.num_tiles - 1 if tiling.overview_last else 0) * num_patches
    overview = _plain_layout(tiling.num_tiles, torch.arange(first, first + num_patches))
    parts = [grid, overview] if tiling.overview_last else [overview, grid]
    return join_layouts(parts, [0, 0], num_patches)._replace(num_tiles=tiling.num_tiles)


def join_layouts(layouts: Sequence[FeatureLayout], first_tiles: Sequence[int], features_per_tile: int) -> FeatureLayout:
    """Lay out several images one after the other.

    Args:
        layouts: at least one.
        first_tiles: where the tiles of each begin among the tiles of all; equal for an image that is shown twice.
        features_per_tile: P.
    """
    tiles = [first * features_per_tile for first in first_tiles]
    places = [0]
    for layout in layouts:
        places.append(places[-1] + layout.num_features)
    zipped = list(zip(layouts, tiles, places[:-1], strict=True))
    return FeatureLayout(
        num_tiles=max(first + layout.num_tiles for first, layout in zip(first_tiles, layouts, strict=True)),
        num_features=places[-1],
        plain=torch.cat([layout.plain + tile for layout, tile, _ in zipped]),
        plain_at=torch.cat([layout.plain_at + place for layout, _, place in zipped]),
        blended=torch.cat([layout.blended + tile for layout, tile, _ in zipped]),
        weights=torch.cat([layout.weights for layout in layouts]),
        blended_at=torch.cat([layout.blended_at + place for layout, _, place in zipped]),
        newline_at=torch.cat([layout.newline_at + place for layout, _, place in zipped]),
    )


def sources_of(layout: FeatureLayout, num_rows: int) -> tuple[RowSources | None, Tensor]:
    """Return what to gather, and the place [F] of each gathered row.

    The sources are None when they are just all of the `num_rows` = U * P feature rows in order.
    """
    places = torch.cat([layout.plain_at, layout.blended_at, layout.newline_at])
    is_all = len(layout.plain) == num_rows == layout.num_features
    if is_all and torch.equal(layout.plain, torch.arange(num_rows)):
        return None, places
    return RowSources(num_rows, layout.plain, layout.blended, layout.weights, len(layout.newline_at)), places


def gather_features(features: Tensor, newline: Tensor | None, sources: RowSources | None) -> Tensor:
    """Make the image features [M, D] of a batch; differentiable in both inputs.

    Args:
        features: projected rows [U * P, D].
        newline: [D]; None for a model without one. It takes part in the graph even when no image shows it, so that
            every rank of a sharded run has a gradient for it.
        sources: on the device of `features`; None keeps all rows.
    """
    if sources is None:
        parts = [features]
    else:
        parts = [features.index_select(0, sources.plain)]
        if len(sources.blended):
            parts.append(_blend(features, sources.blended, sources.weights))
    if newline is not None:
        num_newlines = 0 if sources is None else sources.num_newlines
        parts.append(newline.to(features.dtype).expand(num_newlines, -1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _blend(features: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Add up weighted rows, one of the four at a time: [B, 4, D] at once would be the largest tensor of the step."""
    weights = weights.to(features.dtype)
    blended = features.index_select(0, rows[:, 0]) * weights[:, :1]
    for tap in range(1, rows.shape[1]):
        blended = blended + features.index_select(0, rows[:, tap]) * weights[:, tap : tap + 1]
    return blended


def _plain_layout(num_tiles: int, rows: Tensor) -> FeatureLayout:
    none, no_taps = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4, dtype=torch.int64)
    return FeatureLayout(num_tiles, len(rows), rows, torch.arange(len(rows)), no_taps, no_taps.float(), none, none)


def _with_newline(layout: FeatureLayout, resolution: Resolution) -> FeatureLayout:
    if not resolution.has_newline:
        return layout
    return layout._replace(num_features=layout.num_features + 1, newline_at=torch.tensor([layout.num_features]))


def _frame_layout(resolution: Resolution, view: ImageView) -> FeatureLayout:
    """Lay out a frame: its grid shrunk to half the sides, a newline after the last one of a video."""
    side = resolution.tile_grid
    if side is None:
        raise ValueError(
            "frames of a video need features on a square grid, which neither class tokens nor the queries of a "
            "resampler have; use mm_vision_select_feature 'patch' and an mm_projector_type other than resamplerQ_N"
        )
    half = math.ceil(side / 2)
    taps, weights = _bilinear_taps(torch.arange(side * side).view(side, side), half, half)
    frame = _plain_layout(1, torch.zeros(0, dtype=torch.int64))._replace(
        num_features=half * half, blended=taps, weights=weights, blended_at=torch.arange(half * half)
    )
    return _with_newline(frame, resolution) if view.role == "last_frame" else frame


def _grid_layout(resolution: Resolution, tiling: Tiling, view: ImageView, first_tile: int) -> FeatureLayout:
    """Lay out the tiles as one large grid, row by row."""
    side = resolution.tile_grid
    assert side is not None
    tiles = torch.arange(tiling.rows * tiling.columns).view(tiling.rows, 1, tiling.columns, 1) + first_tile
    patches = torch.arange(side * side).view(1, side, 1, side)
    grid = (tiles * side * side + patches).view(tiling.rows * side, tiling.columns * side)
    if resolution.kind == "anyres" and resolution.has_newline:
        grid = _unpad(grid, view)
    height, width = grid.shape
    blended, weights = torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0, 4)
    if resolution.kind == "anyres" and resolution.max_tiles is not None:
        ratio = math.sqrt(height * width / (resolution.max_tiles * side**2))
        if ratio > _SHRINK_BEYOND:
            height, width = max(1, int(height // ratio)), max(1, int(width // ratio))
            blended, weights = _bilinear_taps(grid, height, width)
    line = width + resolution.has_newline
    places = torch.arange(height * line).view(height, line)
    content, newlines = places[:, :width].reshape(-1), places[:, width:].reshape(-1)
    is_shrunk, none = len(blended) > 0, torch.zeros(0, dtype=torch.int64)
    return FeatureLayout(
        num_tiles=first_tile + tiling.rows * tiling.columns,
        num_features=height * line,
        plain=none if is_shrunk else grid.reshape(-1),
        plain_at=none if is_shrunk else content,
        blended=blended,
        weights=weights,
        blended_at=content if is_shrunk else none,
        newline_at=newlines,
    )


def _unpad(grid: Tensor, view: ImageView) -> Tensor:
    """Leave out rows, or columns, that show padding only."""
    height, width = grid.shape
    if view.width / view.height > width / height:
        shown = int(round(view.height * (width / view.width), 7))
        skipped = (height - shown) // 2
        return grid[skipped : height - skipped]
    shown = int(round(view.width * (height / view.height), 7))
    skipped = (width - shown) // 2
    return grid[:, skipped : width - skipped]


def _bilinear_taps(grid: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the four rows and weights [height * width, 4] that resize `grid` bilinearly, pixel centres aligned."""
    top, bottom, down = _linear_taps(grid.shape[0], height)
    left, right, across = _linear_taps(grid.shape[1], width)
    corners = [grid[top][:, left], grid[top][:, right], grid[bottom][:, left], grid[bottom][:, right]]
    up, back = 1 - down, 1 - across
    shares = [torch.outer(a, b) for a, b in ((up, back), (up, across), (down, back), (down, across))]
    return torch.stack(corners, -1).view(-1, 4), torch.stack(shares, -1).view(-1, 4).float()


def _linear_taps(size: int, new_size: int) -> tuple[Tensor, Tensor, Tensor]:
    centre = ((torch.arange(new_size, dtype=torch.float64) + 0.5) * (size / new_size) - 0.5).clamp(min=0)
    low = centre.long().clamp(max=size - 1)
    return low, (low + 1).clamp(max=size - 1), centre - low
