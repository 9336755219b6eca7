"""A fuzzing campaign: seeded cases in chunks over processes, each with a time limit, outcomes counted.

Case k of a kind depends on (seed, kind, k) only, so any failure can be run again alone.
"""

from __future__ import annotations

import multiprocessing
import random
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from types import FrameType
from typing import NamedTuple

from tests.fuzz import images, tars, texts

CASES: dict[str, Callable[[random.Random], str]] = {
    "tar": tars.run_case,
    "image": images.run_case,
    "text": texts.run_case,
}
FULL_SIZES = {"tar": 100_000, "image": 200_000, "text": 100_000}
TIME_LIMIT_S = 2.0
_CHUNK = 500
_HANG_S = 60.0
"""A process that is stuck in a decoder hears no alarm: its whole chunk gets this long."""


class Failure(NamedTuple):
    """A case that crashed, hung, or broke a promise."""

    kind: str
    number: int
    what: str


class Outcome(NamedTuple):
    """What became of a range of cases."""

    counts: Counter[str]
    failures: list[Failure]
    slowest_s: float
    slowest: int


class CaseTimeoutError(Exception):
    """A case ran into the time limit."""


def run_range(kind: str, seed: int, start: int, end: int) -> Outcome:
    """Run cases `start` to `end` in this process."""
    warnings.simplefilter("ignore")  # Pillow warns about damage that is the point here
    counts: Counter[str] = Counter()
    failures: list[Failure] = []
    slowest, slowest_s = start, 0.0
    for number in range(start, end):
        started = time.perf_counter()
        try:
            counts[run_one(kind, seed, number)] += 1
        except Exception:
            failures.append(Failure(kind, number, traceback.format_exc(limit=-4)))
        elapsed = time.perf_counter() - started
        if elapsed > slowest_s:
            slowest, slowest_s = number, elapsed
    return Outcome(counts, failures, slowest_s, slowest)


def run_one(kind: str, seed: int, number: int) -> str:
    """Run one case under the time limit of CPU time, which a busy machine does not use up.

    Raises:
        CaseTimeoutError: it took too long.
        Exception: whatever escapes from the code under test.
    """
    previous = signal.signal(signal.SIGVTALRM, _expire)
    signal.setitimer(signal.ITIMER_VIRTUAL, TIME_LIMIT_S)
    try:
        return CASES[kind](random.Random(f"{seed}:{kind}:{number}"))
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)


def run_campaign(
    sizes: dict[str, int], seed: int, num_processes: int, report: Callable[[str], None]
) -> dict[str, Outcome]:
    """Run all cases; a process that dies is a failure of the cases it held."""
    chunks = [
        (kind, start, min(start + _CHUNK, size)) for kind, size in sizes.items() for start in range(0, size, _CHUNK)
    ]
    totals = {kind: Outcome(Counter(), [], 0.0, 0) for kind in sizes}
    started = time.perf_counter()
    for done, (kind, outcome) in enumerate(_run_chunks(chunks, seed, num_processes), start=1):
        total = totals[kind]
        slower = outcome.slowest_s > total.slowest_s
        totals[kind] = Outcome(
            total.counts + outcome.counts,
            total.failures + outcome.failures,
            outcome.slowest_s if slower else total.slowest_s,
            outcome.slowest if slower else total.slowest,
        )
        if done % 100 == 0:
            report(f"{done} of {len(chunks)} chunks, {time.perf_counter() - started:.0f} s")
    return totals


def _run_chunks(chunks: list[tuple[str, int, int]], seed: int, num_processes: int) -> Iterator[tuple[str, Outcome]]:
    context = multiprocessing.get_context("forkserver")
    left = list(chunks)
    while left:
        batch, left = left, []
        with ProcessPoolExecutor(num_processes, mp_context=context) as pool:
            futures = {pool.submit(run_range, kind, seed, start, end): (kind, start, end) for kind, start, end in batch}
            for future in as_completed(futures, timeout=_HANG_S * len(batch)):
                kind, start, end = futures[future]
                try:
                    yield kind, future.result()
                except BrokenProcessPool:
                    if end - start == 1:
                        yield kind, Outcome(Counter(), [Failure(kind, start, "the process died")], 0.0, start)
                    else:  # halves of what was lost, in a new pool, until the case is found
                        middle = (start + end) // 2
                        left += [(kind, start, middle), (kind, middle, end)]


def _expire(_signal: int, _frame: FrameType | None) -> None:
    raise CaseTimeoutError(f"more than {TIME_LIMIT_S} s")


def describe(totals: dict[str, Outcome]) -> str:
    """Return a table of outcomes, most frequent first."""
    lines = []
    for kind, outcome in totals.items():
        lines.append(f"{kind}: {outcome.counts.total()} cases, slowest {outcome.slowest_s:.3f} s ({outcome.slowest})")
        lines += [f"  {number:8d} {reason}" for reason, number in outcome.counts.most_common()]
        lines += [f"  FAILED case {failure.number}\n{failure.what}" for failure in outcome.failures[:10]]
    return "\n".join(lines)


def main_report(line: str) -> None:
    """Print progress where a job log shows it at once."""
    print(line, file=sys.stderr, flush=True)
