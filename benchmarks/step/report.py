"""The results of the CPU benchmarks as a Markdown page: tables, small bar charts, and whether targets are met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

_BAR_WIDTH: Final = 30
_TARGETS: Final = {
    "full finetuning, 384 x 6": 3.0,
    "projector pretraining, 384 x 6": 1.5,
    "full finetuning, 1024 x 8": 2.0,
}
"""Least speed-up against transformers by scenario."""
_MEMORY_TARGET: Final = 1 / 3


def render(results: Mapping[str, Any], command: str) -> str:
    """Return the page of the parts that `results` holds."""
    machine = results["machine"]
    lines = [
        f"# CPU benchmarks, {machine['date']}",
        "",
        f"    {command}",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads of torch {machine['torch']}; "
        f"transformers {machine['transformers']}, Ray {machine['ray']}, Python {machine['python']}. Load average "
        f"before the run {machine['load_before'][0]:.2f}, after it {results.get('load_after', [float('nan')])[0]:.2f}.",
    ]
    parts = {
        "side by side": _side_by_side,
        "packing": _packing,
        "end to end": _end_to_end,
        "growth": _growth,
        "overhead": _overhead,
    }
    for name, write in parts.items():
        if name in results:
            found = results[name]
            lines += ["", *(write(found) if "failed" not in found else [f"## {name}", "", found["failed"]])]
    return "\n".join(lines) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    return [_row(header), "|" + "---|" * len(header), *map(_row, rows)]


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _side_by_side(found: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, one in found.items():
        if "failed" in one:
            rows.append([name, one["failed"], "", "", "", ""])
            continue
        speeds, target = one["useful_tokens_per_s"], _TARGETS[name]
        memory = "not measured"
        if "memory_share" in one:
            sizes = {side: f"{size / 2**20:.0f}" for side, size in one["memory_growth_bytes"].items()}
            verdict = _mark(one["memory_share"] <= _MEMORY_TARGET)
            memory = (
                f"{sizes['ours']} of {sizes['transformers']} MiB: {one['memory_share']:.3f} (at most 0.333) {verdict}"
            )
        rows.append(
            [
                name,
                f"{speeds['ours']:.0f}",
                f"{speeds['transformers']:.0f}",
                f"{one['speedup']:.2f}x (at least {target}x) {_mark(one['speedup'] >= target)}",
                memory,
                f"{one['loss_difference']:.1e}, {one['grad_norm_difference']:.1e}",
            ]
        )
    return [
        "## Training step against transformers.LlavaForConditionalGeneration",
        "",
        "Same weights, same 64 samples, steps of both sides in turn in one process, the other side in padded batches",
        "of 8. Memory: growth of a process of its own from before the model is built, two steps.",
        "",
        *_table(
            ["", "useful tokens/s, ours", "transformers", "speed-up", "memory", "difference of loss, gradient norm"],
            rows,
        ),
    ]


def _packing(found: Mapping[str, Any]) -> list[str]:
    rows = [
        [name, f"{100 * one['efficiency']:.2f} %", f"{100 * one['worst imbalance of tokens']:.2f} %"]
        for name, one in found.items()
    ]
    header = ["global batches of 128, LLaVA-mix lengths", "useful share of the ranks' time", "worst imbalance"]
    return ["## Packing", "", *_table(header, rows)]


def _end_to_end(found: Mapping[str, Any]) -> list[str]:
    rows = [
        [name, f"{one['samples_per_s']:.1f}", f"{100 * one['data_wait_fraction']:.1f} %", one["verdict"]]
        for name, one in found.items()
    ]
    bound = found["data-bound"]
    return [
        "## End to end: Ray Data stream and training on one machine",
        "",
        *_table(["run", "samples/s", "data wait", "verdict printed"], rows),
        "",
        f"The data stage alone: {bound['data stage alone, samples/s']:.1f} samples/s; training reaches "
        f"{100 * bound['share of the data stage']:.0f} % of it.",
    ]


def _growth(found: Mapping[str, Any]) -> list[str]:
    lines = ["## How a step's cost grows (384 x 6, forward and backward of one micro-batch)"]
    for name, points in found.items():
        slowest = max(point["step_time_s"] for point in points)
        rows = [
            [
                int(point["size"]),
                int(point["tokens"]),
                f"{point['step_time_s']:.2f} s",
                f"{point['growth_bytes'] / 2**20:.0f} MiB",
                "`" + "#" * max(1, round(_BAR_WIDTH * point["step_time_s"] / slowest)) + "`",
            ]
            for point in points
        ]
        lines += ["", *_table([name, "tokens", "time", "memory growth", ""], rows)]
    return lines


def _overhead(found: Mapping[str, Any]) -> list[str]:
    times = found["planning_s"]
    slowest = max(times.values())
    rows = [
        [ranks, f"{1000 * time_s:.1f} ms", "`" + "#" * max(1, round(_BAR_WIDTH * time_s / slowest)) + "`"]
        for ranks, time_s in times.items()
    ]
    return [
        "## Overhead per step against ranks (simulated)",
        "",
        *_table([f"ranks, {found['samples_per_rank']} samples each", "planning one step", ""], rows),
        "",
        f"One rank-step travels as {found['payload_bytes'] / 2**20:.1f} MiB, for any number of ranks: "
        f"{1000 * found['write_payload_s']:.1f} ms to write in a preprocessing task, "
        f"{1000 * found['read_payload_s']:.1f} ms to read in the trainer.",
    ]


def _mark(met: bool) -> str:
    return "met" if met else "**missed**"
