"""Random scenes of coloured shapes: facts that questions can be asked about, and all that is needed to draw them.

A scene is a pure function of its random generator. Drawing is left to `pipeline.tools.demo.drawing`.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

GRID = 6
"""Cells per side of the square a scene is laid out on; the demo's vision tower has one patch per cell."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 36, 42),
    "orange": (245, 142, 26),
    "yellow": (240, 222, 48),
    "green": (40, 160, 66),
    "blue": (42, 88, 214),
    "purple": (140, 52, 170),
    "black": (26, 26, 30),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")

Combination: TypeAlias = tuple[str, str]
"""A colour and a shape."""

ALL_COMBINATIONS: tuple[Combination, ...] = tuple(product(COLORS, SHAPES))
HELD_OUT_COMBINATIONS: frozenset[Combination] = frozenset(
    {("purple", "star"), ("orange", "cross"), ("green", "triangle")}
)
"""Never drawn or described for training, neither for the backbones nor in the demo; held-out scenes contain them."""
TRAINING_COMBINATIONS = tuple(c for c in ALL_COMBINATIONS if c not in HELD_OUT_COMBINATIONS)

# Width and height in cells. The long side spans the grid; the rest of the square is padding added by preprocessing.
_ASPECTS: tuple[tuple[float, float], ...] = ((6, 6), (6, 4.5), (6, 4), (4.5, 6), (4, 6))
_RADIUS_CELLS = (0.42, 0.78)
_JITTER_CELLS = 0.3
_ROWS = ("top", "middle", "bottom")
_COLUMNS = ("left", "middle", "right")


@dataclass(frozen=True)
class Thing:
    """One coloured shape. Lengths are in cells, measured from the top left corner of the square grid."""

    color: str
    shape: str
    row: int
    column: int
    x: float
    y: float
    radius: float
    angle: float
    """Rotation in degrees."""
    rgb: tuple[int, int, int]

    @property
    def region(self) -> str:
        """Where it is, in words: one of nine regions of two by two cells."""
        return region_name(self.row, self.column)


@dataclass(frozen=True)
class Scene:
    """Things in reading order (row, then column) on a background."""

    things: tuple[Thing, ...]
    width: float
    """Visible width in cells, centred on the grid."""
    height: float
    """Visible height in cells, centred on the grid."""
    background: tuple[int, int, int]
    texture_seed: int


def region_words(row: int, column: int) -> tuple[str, str]:
    """Return the words for the row and the column of a grid cell, e.g. `top` and `middle`."""
    return _ROWS[3 * row // GRID], _COLUMNS[3 * column // GRID]


def region_name(row: int, column: int) -> str:
    """Name the region of a grid cell, e.g. `top left`, `bottom` or `middle`."""
    outer = [word for word in region_words(row, column) if word != "middle"]
    return " ".join(outer) or "middle"


def random_scene(
    rng: random.Random, num_things: int, combinations: Collection[Combination] = TRAINING_COMBINATIONS
) -> Scene:
    """Place things on free cells such that they neither overlap nor leave the visible part.

    Args:
        rng: source of all randomness.
        num_things: at most this many; fewer when there is no room, but at least one.
        combinations: the colours and shapes to draw from.
    """
    width, height = rng.choice(_ASPECTS)
    cells = [(row, column) for row in _visible(height) for column in _visible(width)]
    rng.shuffle(cells)
    choices = tuple(combinations)
    things: list[Thing] = []
    for row, column in cells:
        thing = _random_thing(rng, rng.choice(choices), row, column, width, height)
        if all(_apart(thing, other) for other in things):
            things.append(thing)
        if len(things) == num_things:
            break
    base = rng.randint(196, 246)
    return Scene(
        things=tuple(sorted(things, key=lambda thing: (thing.row, thing.column))),
        width=width,
        height=height,
        background=_shade(rng, (base, base, base), 9),
        texture_seed=rng.getrandbits(32),
    )


def _visible(extent: float) -> range:
    """Whole cells inside a visible extent that is centred on the grid."""
    margin = (GRID - extent) / 2
    first = int(margin) if margin == int(margin) else int(margin) + 1
    return range(first, GRID - first)


def _random_thing(
    rng: random.Random, combination: Combination, row: int, column: int, width: float, height: float
) -> Thing:
    color, shape = combination
    radius = rng.uniform(*_RADIUS_CELLS)
    return Thing(
        color=color,
        shape=shape,
        row=row,
        column=column,
        x=_inside(column + 0.5 + rng.uniform(-_JITTER_CELLS, _JITTER_CELLS), radius, width),
        y=_inside(row + 0.5 + rng.uniform(-_JITTER_CELLS, _JITTER_CELLS), radius, height),
        radius=radius,
        angle=rng.uniform(-14, 14),
        rgb=_shade(rng, COLORS[color], 14),
    )


def _inside(center: float, radius: float, extent: float) -> float:
    """Move a centre so that the thing stays visible; with radii below one cell it stays in its own cell."""
    margin = (GRID - extent) / 2
    return min(max(center, margin + radius), GRID - margin - radius)


def _apart(thing: Thing, other: Thing) -> bool:
    distance_squared = (thing.x - other.x) ** 2 + (thing.y - other.y) ** 2
    return distance_squared > (1.05 * (thing.radius + other.radius)) ** 2


def _shade(rng: random.Random, rgb: tuple[int, int, int], spread: int) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, channel + rng.randint(-spread, spread))) for channel in rgb)
    return red, green, blue
