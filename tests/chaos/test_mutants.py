"""The suite notices known defects, and passes without them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.mutants import Bench
from tests.chaos.nursery import Nursery
from tests.chaos.world import World

pytestmark = [pytest.mark.chaos, pytest.mark.xdist_group("chaos")]  # one nursery for all


@pytest.mark.parametrize(
    "defect",
    ["cursor_from_newest_folder", "retry_on_advanced_stream", "random_state_not_restored", "sample_substituted",
     "latest_not_atomic", "content_not_verified"],
)  # fmt: skip
def test_known_defect_put_back_turns_its_scenario_red(
    defect: str, world: World, nursery: Nursery, tmp_path: Path
) -> None:
    verdict = Bench(world, nursery, tmp_path).judge(defect)
    assert verdict.took_effect
    assert verdict.is_red


def test_damage_scenario_without_defect_passes(world: World, nursery: Nursery, tmp_path: Path) -> None:
    Bench(world, nursery, tmp_path).play("damage", tmp_path)
