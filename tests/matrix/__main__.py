"""`make matrix`: every pair of options, on Ray and without; ends with 1 if a cell fails or Ray trains something else.

Every tenth row, another one each day, is taken back to its first checkpoint and resumed, to the losses and weights of
the undisturbed run. A pair that configs refuse gets a cell of its own, which must be refused.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pipeline.config import ClusterConfig
from pipeline.launch.on_ray.cluster import start_local_cluster
from tests.matrix.cells import Outcome, refused_values, run_cell, values_of
from tests.matrix.covering import Pair, all_pairs, covering_rows, excluded_pairs, pairs_of
from tests.matrix.options import EXCLUDED, INDEPENDENT, NEEDS, OPTIONS, SLOW
from tests.matrix.parts import write_parts
from tests.matrix.services import serve_parts

_SEED = 7
_EVERY = 10


def main() -> int:
    """Run all rows, or those that are named, and print what became of each."""
    # 1. Which rows.
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("rows", nargs="*", type=int, help="numbers of rows; all without")
    parser.add_argument("--local", action="store_true", help="without Ray")
    parser.add_argument("--refusals", action="store_true", help="only the pairs that configs refuse")
    chosen = parser.parse_args()
    excluded = excluded_pairs(OPTIONS, EXCLUDED)
    wanted = all_pairs(OPTIONS, INDEPENDENT) - excluded
    rows = covering_rows(OPTIONS, wanted, excluded, _SEED, SLOW)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    told, trained, began = list[tuple[str, Outcome]](), set[Pair](), time.monotonic()
    with tempfile.TemporaryDirectory() as name, ExitStack() as services:
        folder = Path(name)
        parts = write_parts(folder) | services.enter_context(serve_parts(folder))
        # 2. The pairs that are refused.
        wrong = 0
        if chosen.refusals or not chosen.rows:
            wrong += _run_refusals(folder, parts, excluded)
        # 3. The rows that train.
        numbers = [] if chosen.refusals else chosen.rows or range(len(rows))
        if numbers and not chosen.local:
            start_local_cluster(ClusterConfig(num_workers=2, cpus_per_worker=0.5, data_workers=2))
        for number in numbers:
            values, started = values_of(rows[number]), time.monotonic()
            lacking = _lacking(values)
            if lacking:
                print(number, f"left out: {lacking} is not installed", flush=True)
                continue
            outcomes = dict(_run_row(values, folder / f"row-{number}", parts, number, with_ray=not chosen.local))
            problem = _problem(outcomes)
            wrong += bool(problem)
            told += outcomes.items()
            trained |= set() if problem else pairs_of(rows[number]) & wanted
            kinds = {name: own.kind for name, own in outcomes.items()}
            print(number, kinds, f"{time.monotonic() - started:.0f} s", problem, flush=True)
            if problem:
                print(json.dumps(values), *(own.told for own in outcomes.values()), sep="\n  ", flush=True)
            shutil.rmtree(folder / f"row-{number}", ignore_errors=True)
    numbers_of = Counter(f"{name} {own.kind}" for name, own in told)
    print(
        f"{len(wanted)} pairs in {len(rows)} rows, {len(numbers)} run, which trained {len(trained)} pairs; "
        f"cells: {dict(numbers_of)}; wrong: {wrong}; {time.monotonic() - began:.0f} s"
    )
    return int(wrong > 0)


def _lacking(values: Mapping[str, Any]) -> str | None:
    packages = (package for (name, value), package in NEEDS.items() if values[name] == value)
    return next((package for package in packages if importlib.util.find_spec(package) is None), None)


def _run_refusals(folder: Path, parts: Mapping[str, str], excluded: Set[Pair]) -> int:
    """Run each excluded pair without Ray; returns how many were not refused."""
    wrong = number = 0
    for name, value, other, others in EXCLUDED:
        for own in others:
            number += 1
            values = refused_values(name, value, other, own, excluded)
            outcome = run_cell(values, folder / f"refused-{number}", parts, "local")
            if outcome.kind != "refused":
                wrong += 1
                print(f"{name} {value} with {other} {own}: {outcome.kind}, not refused: {outcome.told}", flush=True)
    print(f"{number} pairs that configs exclude: {number - wrong} refused", flush=True)
    return wrong


def _run_row(
    values: dict[str, Any], folder: Path, parts: dict[str, str], number: int, *, with_ray: bool
) -> Iterator[tuple[str, Outcome]]:
    yield "local", run_cell(values, folder / "local", parts, "local")
    if with_ray:
        yield "ray", run_cell(values, folder / "ray", parts, "ray")
    if number % _EVERY == datetime.date.today().toordinal() % _EVERY:
        again = {**values, "checkpoint.every_steps": 1, "checkpoint.keep_last": 2, "checkpoint.folder": None}
        begun = run_cell(again, folder / "resumed", parts, "local")
        if begun.kind == "trains":
            _rewind(folder / "resumed")
            begun = run_cell(again, folder / "resumed", parts, "local")
        yield "resumed", begun


def _rewind(run_dir: Path) -> None:
    """Forget what came after the first step, as if the run had been ended there."""
    for folder in (run_dir / "checkpoints").glob("step-*"):
        if folder.name != "step-00000001":
            shutil.rmtree(folder)
    for result in ("model", "projector"):
        shutil.rmtree(run_dir / result, ignore_errors=True)
    metrics = run_dir / "metrics.jsonl"
    metrics.write_text(metrics.read_text().splitlines(keepends=True)[0])


def _problem(outcomes: Mapping[str, Outcome]) -> str:
    """Return what is wrong with a row; empty where nothing is."""
    local = outcomes["local"]
    if local.kind != "trains":
        return f"local {local.kind}: {local.told}"
    for name, other in outcomes.items():
        if other.kind != "trains":
            return f"{name} {other.kind}: {other.told}"
        if other.steps != local.steps:
            return f"{name} has other losses: {_shown(other.steps)}, not {_shown(local.steps)}"
        if other.weights != local.weights:
            return f"{name} has the losses of local and other weights"
    return ""


def _shown(steps: Sequence[tuple[int, float, float]]) -> str:
    return "; ".join(f"step {step} loss {loss!r} norm {norm!r}" for step, loss, norm in steps)


if __name__ == "__main__":
    sys.exit(main())
