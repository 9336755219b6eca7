"""A few of the kills and races in object storage that `make chaos` does by the hundred."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.nursery import Nursery
from tests.chaos.remote import kill_remote_runs, race_for_runs
from tests.chaos.storage_faults import Bench
from tests.chaos.world import World

pytestmark = [pytest.mark.chaos, pytest.mark.xdist_group("chaos")]  # one nursery for all


def test_run_in_object_storage_killed_at_random_equals_the_undisturbed_run_on_a_disk_bitwise(
    world: World, nursery: Nursery, tmp_path: Path
) -> None:
    outcome = kill_remote_runs(world, nursery, tmp_path, random.Random(20264), 1, 2)
    assert outcome["kills"] == 2
    assert outcome["steps_compared"] > 15


def test_of_two_launchers_that_start_at_the_same_moment_one_gets_the_run() -> None:
    assert race_for_runs(10) == {"races": 10, "won by one": 10}


def test_run_in_object_storage_goes_on_after_an_outage_and_ends_at_a_refusal(
    world: World, nursery: Nursery, tmp_path: Path
) -> None:
    bench = Bench(world, nursery, tmp_path)
    assert bench.play("run_dir", "lost answers", 2.0).exit_code == 0
    assert bench.play("run_dir", "RequestTimeTooSkewed", 0).exit_code == 6  # whose reason is told, or it raises
