"""Interrupted saves and damaged files, a few of each."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.nursery import Nursery
from tests.chaos.runs import Run
from tests.chaos.saves import damage_files, kill_savers
from tests.chaos.world import World

pytestmark = [pytest.mark.chaos, pytest.mark.xdist_group("chaos")]  # one nursery for all


def test_saver_killed_at_random_moments_never_loses_a_finished_save(nursery: Nursery, tmp_path: Path) -> None:
    outcome = kill_savers(nursery, tmp_path, random.Random(20264), 20)
    assert (outcome.kills, outcome.generations_lost) == (20, 0)


def test_any_damaged_byte_of_a_real_checkpoint_costs_one_generation_and_is_reported(
    world: World, nursery: Nursery, tmp_path: Path
) -> None:
    run = Run(world, nursery, tmp_path / "run")
    run.finish()
    outcome = damage_files(run.run_dir / "checkpoints", random.Random(20265), 40)
    assert outcome.detected == 40
    assert min(outcome.files.values()) > 0
