"""`make chaos`: every part in its full size, with one seed, results written to a file that becomes a page of docs.

python -m tests.chaos [--part PART ...] [--seed N] [--folder runs/chaos]
"""

from __future__ import annotations

import argparse
import random
import secrets
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.chaos.nursery import Nursery
from tests.chaos.results import Results
from tests.chaos.world import World, build_world

_PLAIN_KILLS = {1: 56, 2: 24}
"""SIGKILLs by number of ranks; those under Ray Train are a part of their own."""
_REMOTE_KILLS = {1: 76, 2: 24}
_RACES = 500
_OUTAGE_S = 60.0
_RANK_CHANGES = ((2, 1, 3), (1, 4, 2), (3, 2, 1), (4, 3, 2))
_SAVE_KILLS = 1000
_DAMAGES = 300
_RESUMES = 30
_OUTAGE_ROUNDS = 5
_RAY_KILLS = 24
_RECOVERIES = 5
_NODE_REMOVALS = 6
_ELASTIC_REMOVALS = 4


class Setting(NamedTuple):
    """Where and how a part runs."""

    world: World
    nursery: Nursery
    folder: Path
    rng: random.Random


def kills(setting: Setting) -> dict[str, Any]:
    """SIGKILL workers of the plain launcher, and change the number of ranks between kills."""
    from tests.chaos.kills import change_ranks, kill_runs

    world, nursery, folder, rng = setting
    found: dict[str, Any] = {
        f"{ranks} ranks" if ranks > 1 else "1 rank": kill_runs(
            world, nursery, folder, rng, num_ranks=ranks, num_kills=number
        )._asdict()
        for ranks, number in _PLAIN_KILLS.items()
    }
    found["ranks changed"] = [
        "; ".join(change_ranks(world, nursery, folder / f"changed-{number}", rng, counts))
        for number, counts in enumerate(_RANK_CHANGES)
    ]
    return found


def remote(setting: Setting) -> dict[str, Any]:
    """SIGKILL workers of runs whose folder is in object storage, and let two launchers race for one run."""
    from tests.chaos.remote import kill_remote_runs, race_for_runs

    world, nursery, folder, rng = setting
    found: dict[str, Any] = {
        f"{ranks} ranks" if ranks > 1 else "1 rank": kill_remote_runs(world, nursery, folder, rng, ranks, number)
        for ranks, number in _REMOTE_KILLS.items()
    }
    return found | {"races of two launchers": race_for_runs(_RACES)}


def storage(setting: Setting) -> dict[str, Any]:
    """Let object storage fail for a minute, or for good, for each thing that a run keeps there."""
    from tests.chaos.storage_faults import Bench, fault_table

    return fault_table(Bench(setting.world, setting.nursery, setting.folder), _OUTAGE_S)


def saves(setting: Setting) -> dict[str, Any]:
    """SIGKILL a process that saves checkpoints, and damage the files of real ones."""
    from tests.chaos.runs import Run
    from tests.chaos.saves import damage_files, kill_savers

    world, nursery, folder, rng = setting
    found = {"interrupted saves": kill_savers(nursery, folder / "savers", rng, _SAVE_KILLS)._asdict()}
    run = Run(world, nursery, folder / "damaged")
    run.finish()
    return found | {"damaged files": damage_files(run.run_dir / "checkpoints", rng, _DAMAGES)._asdict()}


def batches(setting: Setting) -> dict[str, Any]:
    """Read global batches on several numbers of ranks, and over resumes on another number."""
    from tests.chaos.batches import NUM_RANKS, Batches

    reader = Batches(setting.world, setting.folder)
    for num_ranks in NUM_RANKS:
        reader.check(reader.read(num_ranks, 0, reader.total_steps), 0, f"{num_ranks} ranks")
    resumes = [reader.check_resume(setting.rng) for _ in range(_RESUMES)]
    return {
        "ranks compared": list(NUM_RANKS),
        "steps of two epochs": reader.total_steps,
        "resumes compared": len(resumes),
        "resumes": [f"{resume.before}->{resume.after}@{resume.at_step}" for resume in resumes],
        "global batches that differ": 0,
    }


def defects(setting: Setting) -> dict[str, Any]:
    """Put known defects back one by one: each must turn its scenario red, which is green without it."""
    from tests.chaos.mutants import Bench
    from tests.chaos.mutations import MUTATIONS

    bench = Bench(setting.world, setting.nursery, setting.folder)
    for scenario in sorted({mutation.scenario for mutation in MUTATIONS.values()}):
        bench.play(scenario, setting.folder / f"sound-{scenario.replace(' ', '-')}")
    verdicts = {name: bench.judge(name) for name in MUTATIONS}
    missed = [name for name, verdict in verdicts.items() if not (verdict.is_red and verdict.took_effect)]
    if missed:
        raise AssertionError(f"defects {missed} were not noticed: {verdicts}")
    return {
        "defects put back": len(verdicts),
        "noticed": len(verdicts),
        **{name: f"{verdict.story}: noticed by scenario `{verdict.scenario}`" for name, verdict in verdicts.items()},
    }


def outage(setting: Setting) -> dict[str, Any]:
    """Kill the MLflow server for whole runs, bring it back, replay."""
    from tests.chaos.outage import measure_outage

    return measure_outage(setting.world, setting.nursery, setting.folder, _OUTAGE_ROUNDS)._asdict()


def ray(setting: Setting) -> dict[str, Any]:
    """SIGKILL workers, data workers, controller and driver under Ray Train."""
    from tests.chaos.ray_kills import kill_ray_runs
    from tests.chaos.runs import Run

    calm = Run(setting.world, setting.nursery, setting.folder / "calm", 2).finish()
    return kill_ray_runs(setting.world, setting.folder, setting.rng, calm, _RAY_KILLS)


def recovery(setting: Setting) -> dict[str, Any]:
    """Time from a training worker's death to the next step under Ray Train."""
    from tests.chaos.ray_kills import measure_recovery

    return measure_recovery(setting.world, setting.folder, setting.rng, _RECOVERIES)


def nodes(setting: Setting) -> dict[str, Any]:
    """Remove and add nodes of a Ray cluster while it trains."""
    from tests.chaos.ledger import step_samples, surviving_history
    from tests.chaos.ray_nodes import change_nodes
    from tests.chaos.runs import Run

    calm = Run(setting.world, setting.nursery, setting.folder / "calm").finish()
    reference = [sorted(step_samples(step)) for step in surviving_history(calm.records)]
    return {
        name: change_nodes(setting.world, setting.folder, setting.rng, reference, number, elastic=elastic)._asdict()
        for name, number, elastic in (("two workers", _NODE_REMOVALS, False), ("elastic", _ELASTIC_REMOVALS, True))
    }


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "kills": kills,
    "remote": remote,
    "saves": saves,
    "storage": storage,
    "batches": batches,
    "defects": defects,
    "outage": outage,
    "ray": ray,
    "recovery": recovery,
    "nodes": nodes,
}


def main() -> int:
    """Run the parts asked for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--part", action="append", choices=sorted(PARTS), help="only this part; may be repeated")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000), help="default: a random one")
    parser.add_argument("--folder", type=Path, default=Path("runs/chaos"), help="for run folders and results")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    print(f"chaos: seed {arguments.seed}, results in {folder}", flush=True)
    shutil.rmtree(folder / "work", ignore_errors=True)
    world = build_world(folder / "work" / "world")
    results = Results(folder / f"{time.strftime('%Y-%m-%d')}-chaos.json")
    failed = []
    with Nursery() as nursery:
        for part in arguments.part or PARTS:
            rng = random.Random(f"{arguments.seed}/{part}")
            started = time.monotonic()
            try:
                with results.measured(part, arguments.seed, str(PARTS[part].__doc__)) as found:
                    found |= PARTS[part](Setting(world, nursery, folder / "work" / part, rng))
            except Exception as error:  # the other parts still run
                failed.append(part)
                print(f"chaos: {part} FAILED after {time.monotonic() - started:.0f} s", flush=True)
                traceback.print_exception(error)
            else:
                print(f"chaos: {part} passed in {time.monotonic() - started:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
