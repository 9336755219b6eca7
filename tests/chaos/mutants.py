"""Testing the suite: a scenario must pass on the product, and fail on the product with a known defect put back."""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

from tests.chaos.ledger import ViolationError
from tests.chaos.mutations import MUTATIONS, Scenario, took_effect
from tests.chaos.nursery import Nursery
from tests.chaos.runs import Run, check_like_calm
from tests.chaos.saves import damage_newest, kill_savers
from tests.chaos.tracking import check_replay
from tests.chaos.world import World

_KILL_BEFORE_STEP = 9
"""Odd, so that the newest checkpoint is one step behind."""
_SAVE_KILLS = 30
_DAMAGES = 30


class Verdict(NamedTuple):
    """What a scenario said about a defect."""

    scenario: Scenario
    story: str
    is_red: bool
    took_effect: bool
    reason: str
    """The first line of what the scenario found."""


class Bench:
    """Where scenarios run: one world, one nursery, one folder."""

    def __init__(self, world: World, nursery: Nursery, folder: Path) -> None:
        self._world, self._nursery, self._folder = world, nursery, folder

    def judge(self, name: str) -> Verdict:
        """Run the scenario that a defect belongs to, with the defect."""
        mutation = MUTATIONS[name]
        folder = self._folder / name
        reason = ""
        try:
            self.play(mutation.scenario, folder, name)
        except (ViolationError, TimeoutError) as error:
            reason = str(error).strip().splitlines()[0]
            if "ended with [1" in reason:  # not found by the product or by the suite, but fallen over
                raise RuntimeError(f"defect {name} does not fit the product any more: {error}") from error
        printed = "".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.log")))
        return Verdict(mutation.scenario, mutation.story, bool(reason), took_effect(printed), reason)

    def play(self, scenario: Scenario, folder: Path, mutation: str | None = None) -> None:
        """Run a scenario, with a defect or without.

        Raises:
            ViolationError: it found what must not be.
        """
        folder.mkdir(parents=True, exist_ok=True)
        run_dir = folder / "run"
        environment = {"CHAOS_RUN_DIR": str(run_dir), **({"CHAOS_MUTATION": mutation} if mutation else {})}
        rng = random.Random(scenario)
        if scenario == "save":
            kill_savers(self._nursery, folder, rng, _SAVE_KILLS, **environment)
        elif scenario == "flip":
            self._play_flips(run_dir, environment)
        elif scenario == "replay":
            check_replay(self._world, self._nursery, folder, environment)
        else:
            self._play_kill(scenario, run_dir, environment, rng)

    def _play_kill(self, scenario: Scenario, run_dir: Path, environment: dict[str, str], rng: random.Random) -> None:
        num_ranks = 2 if scenario == "two ranks" else 1
        # The undisturbed run has the defect too: what is judged is whether a kill can be told afterwards.
        calm = Run(self._world, self._nursery, run_dir.with_name("calm"), num_ranks, environment=environment).finish()
        run = Run(self._world, self._nursery, run_dir, num_ranks, environment=environment)
        codes = [child.wait(60.0) for child in run.start(CHAOS_KILL_BEFORE_STEP=str(_KILL_BEFORE_STEP))]
        if -9 not in codes or 0 in codes:  # a rank that sees its peer die may end by itself first
            raise ViolationError(f"the attempt ended with {codes} before it was killed; see {run.log}")
        if scenario == "damage":
            damage_newest(run_dir / "checkpoints", rng)
        check_like_calm(calm, run.finish())

    def _play_flips(self, run_dir: Path, environment: dict[str, str]) -> None:
        Run(self._world, self._nursery, run_dir).finish()
        child = self._nursery.start("damage", [str(run_dir), str(_DAMAGES)], run_dir.with_suffix(".log"), environment)
        if child.wait(60.0):
            raise ViolationError(child.output().strip().splitlines()[-1])
