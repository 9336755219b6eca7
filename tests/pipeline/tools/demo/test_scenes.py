"""Scenes are reproducible, and their things keep apart, inside, and in the cell that the facts name."""

import itertools
import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tools.demo.scenes import (
    ALL_COMBINATIONS,
    GRID,
    HELD_OUT_COMBINATIONS,
    TRAINING_COMBINATIONS,
    random_scene,
    region_name,
)

seeds = st.integers(0, 2**32)
counts = st.integers(1, 5)


@settings(max_examples=150, deadline=None)
@given(seeds, counts)
def test_random_scene_keeps_things_apart_and_in_their_cells(seed: int, count: int) -> None:
    scene = random_scene(random.Random(seed), count)
    assert 1 <= len(scene.things) <= count
    for thing in scene.things:
        assert (int(thing.y), int(thing.x)) == (thing.row, thing.column)
        assert abs(thing.x - GRID / 2) + thing.radius <= scene.width / 2 + 1e-9
        assert abs(thing.y - GRID / 2) + thing.radius <= scene.height / 2 + 1e-9
    for one, other in itertools.combinations(scene.things, 2):
        assert math.dist((one.x, one.y), (other.x, other.y)) > one.radius + other.radius


@settings(max_examples=50, deadline=None)
@given(seeds, counts)
def test_random_scene_lists_things_in_reading_order(seed: int, count: int) -> None:
    cells = [(thing.row, thing.column) for thing in random_scene(random.Random(seed), count).things]
    assert cells == sorted(set(cells))


def test_random_scene_with_one_seed_is_the_same_scene() -> None:
    assert random_scene(random.Random(7), 4) == random_scene(random.Random(7), 4)
    assert random_scene(random.Random(7), 4) != random_scene(random.Random(11), 4)


def test_training_scenes_never_show_held_out_combinations() -> None:
    shown = {
        (thing.color, thing.shape)
        for seed in range(300)
        for thing in random_scene(random.Random(seed), 4, TRAINING_COMBINATIONS).things
    }
    assert shown == set(TRAINING_COMBINATIONS) == set(ALL_COMBINATIONS) - HELD_OUT_COMBINATIONS
    assert len(ALL_COMBINATIONS) == 35


def test_region_name_leaves_middle_out_unless_it_is_all() -> None:
    names = [[region_name(row, column) for column in (0, 3, 5)] for row in (1, 2, 4)]
    assert names == [
        ["top left", "top", "top right"],
        ["left", "middle", "right"],
        ["bottom left", "bottom", "bottom right"],
    ]
