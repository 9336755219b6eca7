"""`python -m tests.fuzz`: the full campaign. `--only tar:123 --seed S` runs one case again, with its traceback."""

from __future__ import annotations

import os
import random
import time
from typing import Annotated

import typer

from tests.fuzz.campaign import FULL_SIZES, describe, main_report, run_campaign, run_one
from tests.fuzz.storage import run_cases

NUM_STORAGE_FAULTS = 200


def main(
    seed: Annotated[int | None, typer.Option(help="Printed; drawn when not given.")] = None,
    share: Annotated[float, typer.Option(help="Share of the full sizes.")] = 1.0,
    processes: Annotated[int | None, typer.Option(help="One per core by default.")] = None,
    only: Annotated[str | None, typer.Option(help="KIND:NUMBER, one case in this process.")] = None,
) -> None:
    """Fuzz tar archives, images, annotations and storage."""
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
    if num_failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
