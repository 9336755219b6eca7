"""`python -m tests.fuzz`: the full campaign. `--only tar:123 --seed S` runs one case again, with its traceback."""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from tests.fuzz.campaign import FULL_SIZES, describe, main_report, run_campaign, run_one
from tests.fuzz.flips import KINDS, prepare_world, turn_bits
from tests.fuzz.storage import run_cases

NUM_STORAGE_FAULTS = 200
NUM_FLIPS = 1000


def main(
    seed: Annotated[int | None, typer.Option(help="Printed; drawn when not given.")] = None,
    share: Annotated[float, typer.Option(help="Share of the full sizes.")] = 1.0,
    processes: Annotated[int | None, typer.Option(help="One per core by default.")] = None,
    only: Annotated[str | None, typer.Option(help="KIND:NUMBER, one case in this process.")] = None,
) -> None:
    """Fuzz tar archives, images, annotations and storage, and turn bits in files that runs read."""
    seed = random.SystemRandom().randrange(10**9) if seed is None else seed
    if only is not None:
        kind, _, number = only.partition(":")
        print(run_one(kind, seed, int(number)))
        return
    sizes = {kind: int(size * share) for kind, size in FULL_SIZES.items()}
    num_processes = processes or len(os.sched_getaffinity(0))
    print(f"seed {seed}, {sizes}, {num_processes} processes", flush=True)
    started = time.perf_counter()
    totals = run_campaign(sizes, seed, num_processes, main_report)
    print(describe(totals))
    num_failed = sum(len(outcome.failures) for outcome in totals.values())
    print(f"{num_failed} failures, {time.perf_counter() - started:.0f} s, seed {seed}")
    counts = run_cases(int(NUM_STORAGE_FAULTS * share), seed)
    print("storage: " + ", ".join(f"{name} {number}" for name, number in sorted(counts.items())))
    with tempfile.TemporaryDirectory() as folder:
        world = prepare_world(Path(folder))
        for kind in KINDS:
            outcome = turn_bits(world, kind, random.Random(f"{seed}/{kind}"), int(NUM_FLIPS * share) // len(KINDS))
            print(
                f"turned bits, {kind}: {outcome.equal} changed nothing, {outcome.refused} refused, "
                f"{len(outcome.silent)} unnoticed or unexplained"
            )
            print(*outcome.silent, sep="\n", end="\n" if outcome.silent else "")
            num_failed += len(outcome.silent)
    if num_failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
