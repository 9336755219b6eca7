"""`make matrix`: every pair of options, on Ray and without; ends with 1 if a cell fails or Ray trains something else.

A cell of several workers is compared for how it ends only: torch's sums depend on the number of ranks. Every tenth
cell, another one each day, is taken back to its first checkpoint and resumed, to the losses of the undisturbed run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.config import ClusterConfig
from pipeline.launch.on_ray.cluster import start_local_cluster
from tests.matrix.cells import Outcome, run_cell, values_of
from tests.matrix.covering import all_pairs, covering_rows, excluded_pairs
from tests.matrix.options import EXCLUDED, OPTIONS
from tests.matrix.parts import write_parts

_SEED = 7
_EVERY = 10


def main() -> int:
    """Run all rows, or those that are named, and print what became of each."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("rows", nargs="*", type=int, help="numbers of rows; all without")
    parser.add_argument("--local", action="store_true", help="without Ray")
    options = parser.parse_args()
    excluded = excluded_pairs(OPTIONS, EXCLUDED)
    rows = covering_rows(OPTIONS, excluded, _SEED)
    chosen = options.rows or range(len(rows))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if not options.local:
        start_local_cluster(ClusterConfig(num_workers=2, cpus_per_worker=0.5, data_workers=2))
    began, wrong, kinds = time.monotonic(), 0, Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        parts = write_parts(Path(folder))
        for number in chosen:
            values = values_of(rows[number])
            outcomes = _run_row(values, Path(folder) / f"row-{number}", parts, number, with_ray=not options.local)
            problem = _problem(values, outcomes)
            wrong += bool(problem)
            kinds.update(outcome.kind for outcome in outcomes.values())
            print(number, {name: own.kind for name, own in outcomes.items()}, problem, flush=True)
            if problem:
                print(json.dumps(values), *(own.told for own in outcomes.values()), sep="\n  ", flush=True)
    print(
        f"{len(all_pairs(OPTIONS))} pairs, {len(excluded)} of them excluded, in {len(rows)} rows, {len(chosen)} run; "
        f"cells: {dict(kinds)}; wrong: {wrong}; {time.monotonic() - began:.0f} s"
    )
    return int(wrong > 0)


def _run_row(
    values: dict[str, Any], folder: Path, parts: dict[str, str], number: int, *, with_ray: bool
) -> dict[str, Outcome]:
    outcomes = {"local": run_cell(values, folder / "local", parts, "local")}
    if with_ray:
        outcomes["ray"] = run_cell(values, folder / "ray", parts, "ray")
    if number % _EVERY == datetime.date.today().toordinal() % _EVERY:
        again = {**values, "checkpoint.every_steps": 1, "checkpoint.keep_last": 2, "checkpoint.folder": None}
        outcomes["resumed"] = run_cell(again, folder / "resumed", parts, "local")
        if outcomes["resumed"].kind == "trains":
            _rewind(folder / "resumed")
            outcomes["resumed"] = run_cell(again, folder / "resumed", parts, "local")
    return outcomes


def _rewind(run_dir: Path) -> None:
    """Forget what came after the first step, as if the run had been ended there."""
    for folder in (run_dir / "checkpoints").glob("step-*"):
        if folder.name != "step-00000001":
            shutil.rmtree(folder)
    metrics = run_dir / "metrics.jsonl"
    metrics.write_text(metrics.read_text().splitlines(keepends=True)[0])


def _problem(values: dict[str, Any], outcomes: dict[str, Outcome]) -> str:
    """Return what is wrong with a row; empty where nothing is."""
    local = outcomes["local"]
    for name, other in outcomes.items():
        if other.kind == "fails":
            return f"{name} fails"
        if other.kind != local.kind:
            return f"{name} differs: {other.told or local.told}"
        if values["cluster.num_workers"] == 1 and other.losses != local.losses:
            return f"{name} has other losses: {other.losses}, not {local.losses}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
