"""Global batches on any number of ranks, read from the tokens that the loader hands to training."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.batches import NUM_RANKS, Batches
from tests.chaos.world import NUM_EPOCHS, NUM_SAMPLES, World

pytestmark = [pytest.mark.chaos, pytest.mark.xdist_group("chaos")]  # one nursery for all


def test_global_batches_any_number_of_ranks_and_resumes_are_the_same_ordered_lists(
    world: World, tmp_path: Path
) -> None:
    batches = Batches(world, tmp_path)
    assert len([number for batch in batches.reference for number in batch]) == NUM_SAMPLES * NUM_EPOCHS
    for num_ranks in NUM_RANKS:
        batches.check(batches.read(num_ranks, 0, batches.total_steps), 0, f"{num_ranks} ranks")
    rng = random.Random(20266)
    assert all(batches.check_resume(rng).at_step > 0 for _ in range(3))
