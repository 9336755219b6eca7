"""How an image of any size becomes square tiles: the policy as read from a config, and the tiles it chooses.

Pure functions of the image's size, shared by the index, the plan, the data side and the model, so that all of them
count the same features. Cutting pixels is left to the data side, merging features to `feature_layout`.
Sources: LLaVA-NeXT `mm_utils.py` (pin points; rounding as in transformers), InternVL `dataset.py` (dynamic tiles).

Sizes are (height, width) in pixels; pin points are (width, height), as published LLaVA configs have them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Literal, NamedTuple, cast, get_args

from model.fusion.native_size import Sizing, native_grid

ADDED_LATER: Final = {"added_later": True}
"""Marks a field that fingerprints leave out at its default, so that those of older runs stay as they were."""

Fit = Literal["pad", "crop", "stretch"]
"""How one tile shows a whole image: on a square of the mean colour, cut at the long side, or distorted."""
Kind = Literal["pad", "crop", "anyres", "dynamic", "native"]
"""The part of an aspect ratio before its numbers."""
PatchMerge = Literal["flat", "spatial", "spatial_unpad"]
"""Features tile by tile; row by row over all tiles; the same without padding and with a newline after each row."""
Role = Literal["image", "single", "frame", "last_frame"]
"""An image in tiles, an image of any size in one tile, a frame of a video, and the last frame of a video."""
Pinpoints = str | Sequence[Sequence[int]] | None
"""As a config has them; see `read_resolution`."""
ROLES: Final[tuple[Role, ...]] = get_args(Role)

ASPECT_RATIO_PATTERN: Final = r"pad|crop|anyres|anyres_max_[1-9]\d*|dynamic_[1-9]\d*_[1-9]\d*|native_[1-9]\d*_[1-9]\d*"
_NEXT_GRIDS: Final = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
"""LLaVA-NeXT's pin points as (columns, rows)."""
_ONEVISION_SIDE: Final = 6


class ImageView(NamedTuple):
    """What decides how an image is shown; equal views of any images have equally many features."""

    height: int
    width: int
    role: Role = "image"


class Tiling(NamedTuple):
    """The tiles of one image, row by row, with one that shows the whole image before or after them."""

    overview: Fit | None
    """How the tile of the whole image is made; None when there is none."""
    overview_last: bool = False
    rows: int = 0
    columns: int = 0
    content: tuple[int, int] = (0, 0)
    """Height and width of the resized image, centred on the rows x columns tiles, pixels."""

    @property
    def num_tiles(self) -> int:
        """All tiles."""
        return self.rows * self.columns + (self.overview is not None)


@dataclass(frozen=True)
class Resolution:
    """How images become tiles and tiles become features; read it with `read_resolution`."""

    kind: Kind
    tile_size: int
    """Side of a tile, pixels."""
    tile_features: int
    """Features per tile."""
    tile_grid: int | None
    """Features per side of a tile; None when they form no square grid."""
    merge: PatchMerge = "flat"
    pinpoints: tuple[tuple[int, int], ...] = ()
    """Sizes that `anyres` may choose, (width, height), pixels."""
    min_tiles: int = 1
    max_tiles: int | None = None
    """`anyres`: features beyond 1.1^2 times this many tiles are shrunk; `dynamic`: most tiles. None: no limit."""
    pixels: tuple[int, int] | None = field(default=None, metadata=ADDED_LATER)
    """`native`: fewest and most pixels of an image."""
    sizing: Sizing | None = field(default=None, metadata=ADDED_LATER)
    """`native`: how images are sized; tiles are the tower's cells."""

    @property
    def tiles_images(self) -> bool:
        """Whether an image may have more than one tile."""
        return self.kind in ("anyres", "dynamic", "native")

    @property
    def has_newline(self) -> bool:
        """Whether a learnt feature ends each row."""
        return self.merge == "spatial_unpad"

    def roles(self, num_images: int, is_video: bool) -> tuple[Role, ...]:
        """Return the roles of a sample's images.

        `anyres_max_N` shows several images in a tile each, as LLaVA-OneVision does, so that many fit in a sample.
        """
        if is_video and self.kind != "native":
            frame: Role = "frame"
            last: Role = "last_frame"
            return (frame,) * (num_images - 1) + (last,) * (num_images > 0)
        is_single = self.kind == "anyres" and self.max_tiles is not None and num_images > 1
        role: Role = "single" if is_single else "image"
        return (role,) * num_images

    def tiling(self, view: ImageView) -> Tiling:
        """Choose the tiles of an image.

        Worked numbers, tiles of 336: `anyres` shows a 480 x 640 image (height x width) as an overview and 2 x 2 tiles
        on which it measures 504 x 672; `dynamic_1_6` shows it as 2 x 3 tiles, stretched to 672 x 1008, and an overview.
        """
        if self.kind == "pad" or self.kind == "crop":
            return Tiling(self.kind)
        if self.kind == "native":
            return _native_tiling(self, view)
        if view.role == "single":
            return Tiling("pad")
        if view.role != "image":
            return Tiling("stretch")
        return _anyres_tiling(self, view) if self.kind == "anyres" else _dynamic_tiling(self, view)


def grids_of(views: Sequence[ImageView], resolution: Resolution) -> list[tuple[int, int]]:
    """Return the rows and columns of each image's tiles; for images of native resolution these are all their tiles."""
    tilings = [resolution.tiling(view) for view in views]
    return [(tiling.rows, tiling.columns) for tiling in tilings]


def read_resolution(
    aspect_ratio: str,
    pinpoints: Pinpoints,
    merge: str,
    *,
    tile_size: int,
    tile_features: int,
    tile_grid: int | None,
    sizing: Sizing | None = None,
) -> Resolution:
    """Read the three fields of a config.

    Args:
        aspect_ratio: `pad`, `crop`, `anyres`, `anyres_max_N` or `dynamic_MIN_MAX`.
        pinpoints: pairs (width, height) in pixels, as a list or as its text; or, in tiles, `(1x2),(2x1)` or the range
            `(1x1),...,(6x6)`. None takes those of LLaVA-NeXT, for `anyres_max_N` those of LLaVA-OneVision.
        merge: see `PatchMerge`.
        tile_size: side of the vision tower's input, pixels.
        tile_features: features that the tower gives per tile.
        tile_grid: features per side of a tile, None without a grid.
        sizing: of a tower of native resolution, whose cells are the tiles; None for a tower of squares.

    Raises:
        ValueError: a field is illegal, or they do not fit together.
    """
    if merge not in get_args(PatchMerge):
        raise ValueError(f"mm_patch_merge_type is {merge!r}; known: {', '.join(get_args(PatchMerge))}")
    if not re.fullmatch(ASPECT_RATIO_PATTERN, aspect_ratio):
        raise ValueError(
            f"image_aspect_ratio is {aspect_ratio!r}; known: pad, crop, anyres, anyres_max_N (e.g. anyres_max_9), "
            "dynamic_MIN_MAX (e.g. dynamic_1_12), native_MIN_MAX (pixels, e.g. native_3136_1003520)"
        )
    name, *numbers = aspect_ratio.replace("_max_", "_").split("_")
    limits = [int(number) for number in numbers]
    if name in ("dynamic", "native") and limits[0] > limits[1]:
        raise ValueError(f"image_aspect_ratio is {aspect_ratio!r}; expected {name}_MIN_MAX with MIN <= MAX")
    if (name == "native") != (sizing is not None):
        raise ValueError(
            f"image_aspect_ratio is {aspect_ratio!r}, but the vision tower takes "
            + ("squares: choose another" if sizing is None else "images of native resolution: use native_MIN_MAX")
        )
    if name == "native" and limits[1] < tile_size**2:
        raise ValueError(f"{aspect_ratio}: an image has at least the {tile_size**2} pixels of one cell of the tower")
    if pinpoints is not None and name != "anyres":
        raise ValueError(f"image_grid_pinpoints belong to anyres, but image_aspect_ratio is {aspect_ratio!r}")
    if name == "anyres" and limits and merge == "flat":
        raise ValueError(
            f"{aspect_ratio} shrinks the grid of all tiles: mm_patch_merge_type must be spatial_unpad, or spatial"
        )
    if merge != "flat" and tile_grid is None:
        raise ValueError(
            f"mm_patch_merge_type {merge!r} needs features on a square grid, which neither class tokens nor the "
            "queries of a resampler have; use mm_vision_select_feature 'patch' and an mm_projector_type other than "
            "resamplerQ_N, or merge 'flat'"
        )
    return Resolution(
        kind=cast(Kind, name),  # the pattern knows no other
        tile_size=tile_size,
        tile_features=tile_features,
        tile_grid=tile_grid,
        merge=cast(PatchMerge, merge),  # checked above
        pinpoints=_read_pinpoints(pinpoints, tile_size, bool(limits)) if name == "anyres" else (),
        min_tiles=limits[0] if name == "dynamic" else 1,
        max_tiles=limits[-1] if limits and name != "native" else None,
        pixels=(limits[0], limits[1]) if name == "native" else None,
        sizing=sizing,
    )


def _read_pinpoints(given: Pinpoints, tile_size: int, has_limit: bool) -> tuple[tuple[int, int], ...]:
    if given is None and not has_limit:
        grids: tuple[tuple[int, int], ...] = _NEXT_GRIDS
    elif given is None:
        grids = _grids_between((1, 1), (_ONEVISION_SIDE, _ONEVISION_SIDE))
    elif isinstance(given, str) and not given.strip().startswith("["):
        grids = _parse_grids(given)
    else:
        given = _parse_pairs(given) if isinstance(given, str) else given
        bad = [pair for pair in given if len(pair) != 2 or any(side < 1 or side % tile_size for side in pair)]
        if bad or not given:
            raise ValueError(
                f"image_grid_pinpoints {bad or list(given)}: expected pairs (width, height) in multiples of the "
                f"tower's {tile_size} pixels"
            )
        grids = tuple((pair[0] // tile_size, pair[1] // tile_size) for pair in given)
    return tuple((columns * tile_size, rows * tile_size) for columns, rows in grids)


def _parse_pairs(text: str) -> list[list[int]]:
    """Read `[(336, 672), (672, 336)]`, as some published configs have it."""
    try:
        pairs: list[list[int]] = json.loads(text.replace("(", "[").replace(")", "]"))
        if not all(isinstance(side, int) for pair in pairs for side in pair):
            raise TypeError
    except (ValueError, TypeError) as error:
        raise ValueError(f"image_grid_pinpoints {text!r}: expected pairs, such as [(336, 672), (672, 336)]") from error
    return pairs


def _parse_grids(text: str) -> tuple[tuple[int, int], ...]:
    """Read `(1x2),(2x1)` or `(1x1),...,(6x6)`, columns x rows."""
    pair = r"\(([1-9]\d*)x([1-9]\d*)\)"
    compact = text.replace(" ", "")
    ends = re.fullmatch(rf"{pair},\.\.\.,{pair}", compact)
    if ends is not None:
        first, second, third, fourth = (int(number) for number in ends.groups())
        return _grids_between((first, second), (third, fourth))
    if not re.fullmatch(rf"{pair}(,{pair})*", compact):
        raise ValueError(f"image_grid_pinpoints {text!r}: expected (1x2),(2x1),... or a range (1x1),...,(6x6)")
    return tuple((int(columns), int(rows)) for columns, rows in re.findall(pair, compact))


def _grids_between(first: tuple[int, int], last: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    columns, rows = range(first[0], last[0] + 1), range(first[1], last[1] + 1)
    return tuple((column, row) for column in columns for row in rows)


def _native_tiling(resolution: Resolution, view: ImageView) -> Tiling:
    assert resolution.pixels is not None
    assert resolution.sizing is not None
    side = resolution.tile_size
    rows, columns = native_grid(view.height, view.width, side, *resolution.pixels, resolution.sizing)
    return Tiling(None, False, rows, columns, (rows * side, columns * side))


def _anyres_tiling(resolution: Resolution, view: ImageView) -> Tiling:
    width, height = _best_pinpoint(view.height, view.width, resolution.pinpoints)
    by_width, by_height = width / view.width, height / view.height
    if by_width < by_height:
        content = min(math.ceil(view.height * by_width), height), width
    else:
        content = height, min(math.ceil(view.width * by_height), width)
    side = resolution.tile_size
    return Tiling("stretch", False, height // side, width // side, content)


def _best_pinpoint(height: int, width: int, pinpoints: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """Choose the size that keeps most of the image's pixels, then the one that wastes fewest; the first of equals."""

    def merit(pinpoint: tuple[int, int]) -> tuple[int, int]:
        scale = min(pinpoint[0] / width, pinpoint[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - pinpoint[0] * pinpoint[1]

    return max(pinpoints, key=merit)


def _dynamic_tiling(resolution: Resolution, view: ImageView) -> Tiling:
    assert resolution.max_tiles is not None
    columns, rows = _closest_grid(view.height, view.width, resolution)
    side = resolution.tile_size
    overview: Fit | None = "stretch" if columns * rows > 1 else None
    return Tiling(overview, True, rows, columns, (rows * side, columns * side))


def _closest_grid(height: int, width: int, resolution: Resolution) -> tuple[int, int]:
    """Choose the (columns, rows) of nearest aspect ratio; of equals the larger, if the image has half its pixels."""
    assert resolution.max_tiles is not None
    best, best_distance = (1, 1), math.inf
    for columns, rows in _grids_of(resolution.min_tiles, resolution.max_tiles):
        distance = abs(width / height - columns / rows)
        is_filled = width * height > 0.5 * resolution.tile_size**2 * columns * rows
        if distance < best_distance or (distance == best_distance and is_filled):
            best, best_distance = (columns, rows), distance
    return best


@lru_cache(maxsize=16)
def _grids_of(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    sides = range(1, max_tiles + 1)
    grids = [(columns, rows) for columns in sides for rows in sides if min_tiles <= columns * rows <= max_tiles]
    return tuple(sorted(grids, key=lambda grid: (grid[0] * grid[1], grid)))
