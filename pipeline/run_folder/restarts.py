"""Starts of a run's workers and how they ended, in files of the run folder; and the end of starting again in vain.

`restarts.jsonl` has a line per start, `{"attempt", "step", "ranks", "time_s"}`; `failures.jsonl` one per rank that
failed with an error, `{"attempt", "start", "rank", "step", "error", "traceback", "time_s"}`, where `start` is the
number of lines in the former and `traceback` a file in the run folder. A start without a failure line was ended from
outside.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from pipeline.run_folder.files import append_line, read_entries
from pipeline.run_folder.place import shared_files, shown

RESTARTS_FILE = "restarts.jsonl"
FAILURES_FILE = "failures.jsonl"
TRACEBACKS = "tracebacks"
"""Folder in the run folder with the traceback of every failed rank of every start."""
_LONGEST_ERROR = 500  # characters
_FROM_OUTSIDE = "ended from outside: out of memory, lost node, signal"
_START_FIELDS = ("attempt", "step")
_FAILURE_FIELDS = ("start", "rank", "step", "error")


class CrashLoopError(RuntimeError):
    """The workers fail repeatedly without a new checkpoint; the message says how each start ended."""


def record_start(run_dir: Path, attempt: int, step: int, max_restarts: int, num_ranks: int = 1) -> None:
    """Write down that the workers start at `step`.

    Args:
        run_dir: folder of the run.
        attempt: number under which the launcher holds it; starts of earlier launchers do not count.
        step: optimizer steps that the checkpoint holds from which they start.
        max_restarts: restarts from one step that are tried.
        num_ranks: workers that start. An elastic run that changes their number without a failure has not failed.

    Raises:
        CrashLoopError: this would be one more.
    """
    with shared_files(run_dir):
        _record_start(run_dir, attempt, step, max_restarts, num_ranks)


def _record_start(run_dir: Path, attempt: int, step: int, max_restarts: int, num_ranks: int) -> None:
    starts = list(read_entries(run_dir / RESTARTS_FILE, _START_FIELDS))
    failed = {entry["start"] for entry in read_entries(run_dir / FAILURES_FILE, _FAILURE_FIELDS)}
    in_vain: list[int] = []
    next_ranks = num_ranks
    for number, start in reversed(list(enumerate(starts, 1))):
        if (start["attempt"], start["step"]) != (attempt, step):
            break
        ranks = start.get("ranks", next_ranks)
        if number in failed or ranks == next_ranks:
            in_vain.append(number)
        next_ranks = ranks
    if len(in_vain) > max_restarts:
        raise CrashLoopError(_diagnose(run_dir, step, in_vain[::-1]))
    entry = {"attempt": attempt, "step": step, "ranks": num_ranks, "time_s": round(time.time(), 3)}
    append_line(run_dir / RESTARTS_FILE, json.dumps(entry))


def last_attempt(run_dir: Path) -> int:
    """Return the highest attempt number whose workers were started; 0 before the first."""
    starts = read_entries(run_dir / RESTARTS_FILE, _START_FIELDS)
    return max((int(start["attempt"]) for start in starts), default=0)


def record_failure(run_dir: Path, attempt: int, rank: int, step: int, error: BaseException) -> None:
    """Write down how a rank ended, with its traceback; `step` is the one it was working on or waiting for."""
    with shared_files(run_dir):
        _record_failure(run_dir, attempt, rank, step, error)


def _record_failure(run_dir: Path, attempt: int, rank: int, step: int, error: BaseException) -> None:
    text = f"{type(error).__name__}: {error}"
    if len(text) > _LONGEST_ERROR:  # Ray puts the cause last, below the tracebacks of every process on the way
        text = f"{text[:60]} ... {text[60 - _LONGEST_ERROR :]}"
    start = sum(1 for _ in read_entries(run_dir / RESTARTS_FILE, _START_FIELDS))
    file = Path(TRACEBACKS) / f"start-{start:04d}-rank-{rank:05d}.txt"
    (run_dir / file).parent.mkdir(exist_ok=True)
    (run_dir / file).write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    entry = {"rank": rank, "step": step, "error": text, "traceback": str(file), "time_s": round(time.time(), 3)}
    append_line(run_dir / FAILURES_FILE, json.dumps({"attempt": attempt, "start": start, **entry}))


def has_come_back(run_dir: Path, attempt: int, rank: int) -> bool:
    """Whether the rank's last failure is, word for word and at the same step, one of an earlier start."""
    entries = read_entries(run_dir / FAILURES_FILE, ("attempt", *_FAILURE_FIELDS))
    failures = [entry for entry in entries if entry["attempt"] == attempt]
    own = [entry for entry in failures if entry["rank"] == rank]
    return bool(own) and any(
        (entry["step"], entry["error"]) == (own[-1]["step"], own[-1]["error"]) and entry["start"] < own[-1]["start"]
        for entry in failures
    )


def describe_cause(run_dir: Path, start: int) -> str:
    """Describe why a start ended: its first failed rank, the step, the error, and the place of the traceback."""
    entries = read_entries(run_dir / FAILURES_FILE, _FAILURE_FIELDS)
    failures = [entry for entry in entries if entry["start"] == start]
    if failures:
        first = min(failures, key=lambda entry: float(entry.get("time_s", 0)))
        place = f" (traceback in {shown(run_dir / first['traceback'])})" if "traceback" in first else ""
        return f"rank {first['rank']} at step {first['step']}: {first['error']}{place}"
    starts = list(read_entries(run_dir / RESTARTS_FILE, _START_FIELDS))
    ranks = [entry.get("ranks") for entry in starts[start - 1 : start + 1]]
    if len(set(ranks)) == 2:
        return f"the number of workers changed from {ranks[0]} to {ranks[1]}"
    return _FROM_OUTSIDE


def _diagnose(run_dir: Path, step: int, in_vain: Sequence[int]) -> str:
    failures = list(read_entries(run_dir / FAILURES_FILE, _FAILURE_FIELDS))
    lines = [
        f"{len(in_vain)} starts from step {step} ended without a new checkpoint, so another one is not tried "
        "(cluster.max_failures):"
    ]
    for number in in_vain:
        own = [entry for entry in failures if entry["start"] == number]
        told = [f"rank {entry['rank']} at step {entry['step']}: {entry['error']}" for entry in own]
        how = "; ".join(told) or _FROM_OUTSIDE
        lines.append(f"  start {number}: {how}")
    steps = sorted({entry["step"] for entry in failures if entry["start"] in in_vain})
    if steps:
        lines.append(f"`ray-llava inspect --step {steps[0]}` shows the samples of step {steps[0]}.")
    lines.append("If the starts were ended from outside, checkpoints may be too rare: lower checkpoint.every_steps.")
    return "\n".join(lines)
