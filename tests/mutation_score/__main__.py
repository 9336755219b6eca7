"""`python -m tests.mutation_score`: change the deciding modules place by place, and count what the tests notice."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from tests.mutation_score.report import describe, summarise
from tests.mutation_score.run import Result, choose, list_changes, run_changes
from tests.mutation_score.survivors import read_survivors
from tests.mutation_score.targets import target_modules


def main() -> int:
    """Run as the arguments say; returns 1 when too much survives that has no excuse."""
    options = _parser().parse_args()
    begin = time.monotonic()
    modules = [module for module in target_modules() if not options.module or module in options.module]
    every = list_changes(modules)
    chosen = choose(every, options.seed, options.per_module, options.in_all)
    print(f"{sum(map(len, chosen.values()))} of {sum(map(len, every.values()))} changes, {len(chosen)} modules")
    excuses = read_survivors()
    results: list[Result] = []
    for result in run_changes(chosen, options.processes):
        results.append(result)
        if options.verbose or (result.trial.outcome == "survived" and result.change.identity not in excuses):
            print(f"{result.trial.outcome} (line {result.change.line}): {result.change.identity}", flush=True)
    summary = summarise(every, results, excuses, options.seed)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        options.out.with_suffix(".md").write_text(describe(summary) + "\n", encoding="utf-8")
    unexcused = summary["without_excuse"] / max(1, summary["tried"])
    print(
        f"{summary['killed']} of {summary['tried']} killed ({summary['share_killed']:.1%}), {summary['without_excuse']}"
        f" survivors without an excuse, in {time.monotonic() - begin:.0f} s"
    )
    if unexcused > options.allow:
        print(f"more than {options.allow:.0%} of the changes survive without an excuse in survivors.yaml")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation_score", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="another one chooses other changes")
    parser.add_argument("--per-module", type=int, metavar="N", help="most changes of a module; all without it")
    parser.add_argument("--in-all", type=int, metavar="N", help="most changes in all; all without it")
    parser.add_argument("--module", action="append", help="only this module; may be repeated")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="modules tried at the same time")
    parser.add_argument("--allow", type=float, default=0.1, help="share of changes that may survive without an excuse")
    parser.add_argument("--out", type=Path, help="JSON file for the figures; the tables go next to it as .md")
    parser.add_argument("--verbose", action="store_true", help="print the killed ones too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
