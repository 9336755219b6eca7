"""SIGKILLs under Ray Train: workers, data workers, the controller, the driver; and what a restart's time is made of."""

from __future__ import annotations

import itertools
import json
import random
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from tests.chaos.ray_runs import RayRun, Role, started, wait_until
from tests.chaos.runs import Result, check_like_calm
from tests.chaos.world import World

_ROLES: tuple[Role, ...] = ("train worker", "train worker", "train worker", "data worker", "controller", "driver")
_LONGEST_DELAY_S = 15.0
_RECOVERY_TIMEOUT_S = 240.0


class Recovery(NamedTuple):
    """Seconds from a training worker's death to the next step trained, and what they are made of."""

    total: float
    old_workers_gone: float
    """Until the failure was noticed and the other worker of the group ended."""
    new_process: float
    """From then until the process of the new rank 0 was created; 0 when it was waiting already."""
    imported: float
    """Until it had joined the group and imported the pipeline."""
    model_built: float
    restored: float
    data: float
    """Until its first batch was there."""
    first_step: float


def kill_ray_runs(world: World, folder: Path, rng: random.Random, calm: Result, num_kills: int) -> dict[str, Any]:
    """Kill processes of Ray runs until there were `num_kills` kills; compare each run with the undisturbed one.

    Args:
        world: what to train on.
        folder: for run folders.
        rng: decides roles, processes and moments.
        calm: an undisturbed run of two ranks under the plain launcher, which Ray Train must equal.
        num_kills: how many.

    Raises:
        ViolationError: a killed run can be told from the undisturbed one.
    """
    kills: Counter[str] = Counter()
    recoveries: list[Recovery] = []
    runs = compared = 0
    while kills.total() < num_kills:
        run = RayRun(world, folder / f"ray-{runs:02d}")
        with started(run):
            # One of each kind and three workers, in any order: the controller may fail three times in a run.
            for role in rng.sample(_ROLES, min(len(_ROLES), num_kills - kills.total())):
                if not _wait_for_moment(run, rng):
                    break
                if (recovery := _kill(run, role, rng, kills)) is not None:
                    recoveries.append(recovery)
            compared += check_like_calm(calm, run.wait())
        runs += 1
    return {
        "runs": runs,
        "kills": kills.total(),
        **{f"kills of a {role}": number for role, number in sorted(kills.items())},
        "steps compared": compared,
        "samples lost": 0,
        "samples trained twice": 0,
        **describe_recoveries(recoveries),
    }


def measure_recovery(world: World, folder: Path, rng: random.Random, num_kills: int) -> dict[str, Any]:
    """Kill only training workers, right after a step, and time each restart."""
    recoveries: list[Recovery] = []
    run = RayRun(world, folder / "recovery")
    with started(run):
        for _ in range(num_kills):
            before = run.num_steps_reported()
            if wait_until(run, before + 5) and (found := _kill(run, "train worker", rng, Counter())):
                recoveries.append(found)
        run.wait()
    return describe_recoveries(recoveries)


def describe_recoveries(recoveries: list[Recovery]) -> dict[str, Any]:
    """Return median and range of each part of the restarts, seconds."""
    if not recoveries:
        return {}
    columns = zip(Recovery._fields, zip(*recoveries, strict=True), strict=True)
    return {
        "restarts timed": len(recoveries),
        **{
            f"restart, {name.replace('_', ' ')}": f"{statistics.median(values):.1f} s ({min(values):.1f} to "
            f"{max(values):.1f})"
            for name, values in columns
        },
    }


def _wait_for_moment(run: RayRun, rng: random.Random) -> bool:
    """Wait for a random time, or for a few steps and a moment; false when the run ended before."""
    if rng.random() < 0.3:
        time.sleep(rng.uniform(0.0, _LONGEST_DELAY_S))
        return run.is_alive()
    reached = wait_until(run, run.num_steps_reported() + rng.randint(1, 5))
    time.sleep(rng.uniform(0.0, 0.05))
    return reached


def _kill(run: RayRun, role: Role, rng: random.Random, kills: Counter[str]) -> Recovery | None:
    """Kill a process of a role if there is one, and start a killed driver again; times what a worker's death costs."""
    old = run.processes("train worker")
    lines = run.num_steps_reported()
    killed_at = time.time()
    if run.kill(role, rng) is None:
        return None
    kills[role] += 1
    if role == "driver":
        run.start()
    if role != "train worker" or not lines:
        return None
    psutil.wait_procs(old, timeout=_RECOVERY_TIMEOUT_S)
    gone_at = time.time()
    return _time_restart(run, lines, killed_at, gone_at)


def _time_restart(run: RayRun, lines_before: int, killed_at: float, gone_at: float) -> Recovery | None:
    """Wait for the first step of the next worker group and take its start apart; None when the run ended meanwhile."""
    old_groups = {record["group"] for record in _lines(run.witness)[:lines_before]}
    while run.is_alive():
        fresh = [entry for entry in _lines(run.witness) if entry["group"] not in old_groups]
        if fresh and fresh[0]["time_s"] > killed_at:
            break
        time.sleep(0.02)
    else:
        return None
    pid = int(fresh[0]["group"].split("-")[0])
    moments = {entry["moment"]: entry["time_s"] for entry in _lines(run.marks) if entry["pid"] == pid}
    try:
        created_at = max(gone_at, psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None
    passed = [killed_at, gone_at, created_at, moments["imported"], moments["model built"]]
    passed += [moments.get("restored", passed[-1]), moments["data"], fresh[0]["time_s"]]
    parts = [later - earlier for earlier, later in itertools.pairwise(passed)]
    return Recovery(passed[-1] - killed_at, *parts)


def _lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
