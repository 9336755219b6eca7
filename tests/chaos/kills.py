"""SIGKILLs of training processes under the plain launcher: alone, in groups of two, and while the number changes."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import NamedTuple

from tests.chaos.ledger import ViolationError, check_exactly_once, step_samples, surviving_history
from tests.chaos.nursery import Nursery
from tests.chaos.runs import KillCount, Moment, Result, Run, check_like_calm, kill_until_done
from tests.chaos.world import NUM_EPOCHS, NUM_SAMPLES, World

_MOMENTS: tuple[Moment, ...] = ("step", "save", "step", "time")
_SAVE_OPERATIONS = 90
"""File operations that the checkpoint saves of an undisturbed run make, about."""
_MOST_KILLS_PER_RUN = 8


class Kills(NamedTuple):
    """What killing one number of ranks came to."""

    runs: int
    """Runs that were killed and continued until they were finished, each equal to the undisturbed one."""
    kills: int
    at_random_times: int
    after_steps: int
    in_checkpoint_saves: int
    survivors_ended_alone: int
    survivors_ended_by_launcher: int
    steps_compared: int
    """Computations of a step, repeats included, equal to the undisturbed one to the last bit."""
    samples_lost: int
    samples_trained_twice: int
    calm_s: float
    """Seconds that an undisturbed attempt takes, start included."""


def kill_runs(
    world: World,
    nursery: Nursery,
    folder: Path,
    rng: random.Random,
    *,
    num_ranks: int,
    num_kills: int,
    kind: type[Run] = Run,
    operations: int = _SAVE_OPERATIONS,
) -> Kills:
    """Kill runs until there were `num_kills` kills, and compare each with the undisturbed run.

    Args:
        world: what runs read.
        nursery: starts processes.
        folder: for run folders.
        rng: decides the moments.
        num_ranks: processes of a run.
        num_kills: how many.
        kind: of the runs that are killed.
        operations: among so many, one may be chosen as the last.

    Raises:
        ViolationError: a killed run can be told from the undisturbed one.
        TimeoutError: a process hangs.
    """
    started = time.monotonic()
    calm: Result = Run(world, nursery, folder / f"calm-{num_ranks}", num_ranks).finish()
    calm_s = time.monotonic() - started
    total = KillCount({"time": 0, "step": 0, "save": 0}, 0, 0)
    runs = compared = 0
    while (done := sum(total.moments.values())) < num_kills:
        moments = [rng.choice(_MOMENTS) for _ in range(min(_MOST_KILLS_PER_RUN, num_kills - done))]
        run = kind(world, nursery, folder / f"killed-{num_ranks}-{runs:03d}", num_ranks)
        count = kill_until_done(run, rng, moments, calm_s, operations)
        compared += check_like_calm(calm, run.result())
        total = KillCount(
            {moment: total.moments[moment] + count.moments[moment] for moment in total.moments},
            total.ended_alone + count.ended_alone,
            total.ended_by_launcher + count.ended_by_launcher,
        )
        runs += 1
    return Kills(
        runs, sum(total.moments.values()), total.moments["time"], total.moments["step"],
        total.moments["save"], total.ended_alone, total.ended_by_launcher, compared, 0, 0, round(calm_s, 2),
    )  # fmt: skip


def change_ranks(
    world: World, nursery: Nursery, folder: Path, rng: random.Random, rank_counts: tuple[int, ...]
) -> list[str]:
    """Kill one run again and again and continue it on another number of ranks; returns what was done.

    Raises:
        ViolationError: a sample is lost or repeated, or a global batch is not the undisturbed run's, order included.
    """
    calm = Run(world, nursery, folder / "calm-changed").finish()
    reference = [sorted(step_samples(step)) for step in surviving_history(calm.records)]
    run = Run(world, nursery, folder / "changed")
    steps = sorted(rng.sample(range(3, len(reference)), len(rank_counts) - 1))
    story = []
    for run.num_ranks, step in zip(rank_counts, [*steps, None], strict=True):
        if step is None:
            run.finish()
            story.append(f"{run.num_ranks} to the end")
            break
        codes = [child.wait(60.0) for child in run.start(CHAOS_KILL_BEFORE_STEP=str(step))]
        if -9 not in codes or 0 in codes:
            raise ViolationError(f"{run.num_ranks} ranks ended with {codes} before they were killed; see {run.log}")
        story.append(f"{run.num_ranks} until killed at step {step}")
    history = surviving_history(run.result().records)
    check_exactly_once(history, NUM_SAMPLES, NUM_EPOCHS)
    for number, step_records in enumerate(history):
        if sorted(step_samples(step_records)) != reference[number]:
            raise ViolationError(f"step {number} held {step_samples(step_records)}, undisturbed {reference[number]}")
    return story
