"""The figures of a run: one JSON file, and the tables of its page under docs/benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.mutation_score.run import Changes, Result
from tests.mutation_score.survivors import Excuse


def summarise(every: Changes, results: Sequence[Result], excuses: Mapping[str, Excuse], seed: int) -> dict[str, Any]:
    """Count by module, and list what survived."""
    modules = {}
    for module, changes in every.items():
        own = [result for result in results if result.change.module == module]
        if own:
            modules[module] = {
                "changes": len(changes),
                "tried": len(own),
                "killed": sum(result.trial.outcome != "survived" for result in own),
                "of_these_out_of_time": sum(result.trial.outcome == "out of time" for result in own),
            }
    survivors = [_survivor(result, excuses) for result in results if result.trial.outcome == "survived"]
    return {
        "seed": seed,
        "tried": len(results),
        "killed": len(results) - len(survivors),
        "share_killed": round(1 - len(survivors) / max(1, len(results)), 4),
        "without_excuse": sum(one["kind"] is None for one in survivors),
        "modules": modules,
        "survivors": sorted(survivors, key=lambda one: (one["module"], one["line"], one["change"])),
    }


def describe(summary: Mapping[str, Any]) -> str:
    """Return the tables as Markdown."""
    lines = ["| module | changes | tried | killed | share |", "|---|---|---|---|---|"]
    for module, counts in summary["modules"].items():
        share = counts["killed"] / counts["tried"]
        lines.append(f"| {module} | {counts['changes']} | {counts['tried']} | {counts['killed']} | {share:.0%} |")
    total = sum(counts["changes"] for counts in summary["modules"].values())
    share = f"{summary['share_killed']:.1%}"
    lines.append(f"| **all** | {total} | {summary['tried']} | {summary['killed']} | **{share}** |")
    lines += ["", "| survivor | line | kind | reason |", "|---|---|---|---|"]
    for one in summary["survivors"]:
        change = f"{one['module']}:{one['change']}".replace("|", "\\|")
        lines.append(f"| `{change}` | {one['line']} | {one['kind'] or 'open'} | {one['reason'] or ''} |")
    return "\n".join(lines)


def _survivor(result: Result, excuses: Mapping[str, Excuse]) -> dict[str, Any]:
    change = result.change
    excuse = excuses.get(change.identity)
    return {
        "module": change.module,
        "line": change.line,
        "change": change.identity.partition(":")[2],
        "kind": None if excuse is None else excuse.kind,
        "reason": None if excuse is None else excuse.reason,
    }
