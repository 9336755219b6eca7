"""A few of the kills that `make chaos` does by the hundred."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.kills import change_ranks, kill_runs
from tests.chaos.nursery import Nursery
from tests.chaos.world import World

pytestmark = [pytest.mark.chaos, pytest.mark.xdist_group("chaos")]  # one nursery for all


def test_single_process_killed_at_random_equals_the_undisturbed_run_bitwise(
    world: World, nursery: Nursery, tmp_path: Path
) -> None:
    outcome = kill_runs(world, nursery, tmp_path, random.Random(20261), num_ranks=1, num_kills=4)
    assert outcome.kills == 4
    assert outcome.steps_compared > 16


def test_one_of_two_ranks_killed_the_other_ends_and_the_run_equals_the_undisturbed_one(
    world: World, nursery: Nursery, tmp_path: Path
) -> None:
    outcome = kill_runs(world, nursery, tmp_path, random.Random(20262), num_ranks=2, num_kills=2)
    assert outcome.kills == 2
    assert outcome.survivors_ended_alone + outcome.survivors_ended_by_launcher == 2


def test_run_continued_on_other_numbers_of_ranks_trains_every_sample_once(
    world: World, nursery: Nursery, tmp_path: Path
) -> None:
    assert len(change_ranks(world, nursery, tmp_path, random.Random(20263), (2, 3, 1))) == 3
