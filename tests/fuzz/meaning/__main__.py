"""`python -m tests.fuzz.meaning`: the nightly campaign; ends with 1 on any difference."""

from __future__ import annotations

import os
import random
import time
from typing import Annotated

import typer

from tests.fuzz.meaning.campaign import describe, run_campaign


def main(
    cases: Annotated[int, typer.Option(help="Rows to convert and read back.")] = 50_000,
    seed: Annotated[int | None, typer.Option(help="Printed; drawn when not given.")] = None,
    processes: Annotated[int | None, typer.Option(help="One per core by default.")] = None,
) -> None:
    """Convert annotations of a known meaning in every dialect and compare what comes back."""
    seed = random.SystemRandom().randrange(10**9) if seed is None else seed
    started = time.perf_counter()
    print(f"seed {seed}, {cases} cases", flush=True)
    result = run_campaign(cases, seed, processes or len(os.sched_getaffinity(0)))
    print(describe(result, started))
    if result.differences:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
