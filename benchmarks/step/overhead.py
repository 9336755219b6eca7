"""What planning and transport cost per step, apart from the work on samples, against the number of ranks (simulated).

Every rank and every preprocessing task computes the whole step's split, so that each can check what it gets.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import pyarrow as pa

from benchmarks.step.workloads import TextSize, build_rank_step, instruction_sizes, plan_of
from pipeline.plan.packing import pack_step
from pipeline.plan.quality import pooled, quality_of
from pipeline.stream.transport import from_row, to_row

_RANKS: Final = (1, 8, 64, 256, 512)
_SAMPLES_PER_RANK: Final = 16
_BUDGET: Final = 8192
_REPEATS: Final = 3


def measure_overhead() -> dict[str, Any]:
    """Return seconds per step of planning by number of ranks, and of one rank's transport, which has no such growth."""
    sizes = instruction_sizes(_SAMPLES_PER_RANK * _RANKS[-1] * _REPEATS, 5, 576)
    planning = {str(ranks): _planning_s(sizes, ranks) for ranks in _RANKS}
    return {"samples_per_rank": _SAMPLES_PER_RANK, "planning_s": planning, **_transport(sizes[:_SAMPLES_PER_RANK])}


def measure_packing() -> dict[str, Any]:
    """Return efficiency and imbalance of global batches of 128 at 2 and 8 ranks by token budget."""
    lengths = [size.fused(576).num_tokens for size in instruction_sizes(128 * 50, 5, 576)]
    batches = [lengths[start : start + 128] for start in range(0, len(lengths), 128)]
    results: dict[str, Any] = {}
    for ranks in (2, 8):
        for budget in (4096, 8192, 16384):
            quality = pooled([quality_of(pack_step(batch, ranks, budget), batch) for batch in batches])
            results[f"{ranks} ranks, rows of {budget}"] = {
                "efficiency": quality.efficiency,
                "worst imbalance of tokens": quality.imbalance,
            }
    return results


def _planning_s(sizes: list[TextSize], ranks: int) -> float:
    plan = plan_of(sizes[: _SAMPLES_PER_RANK * ranks * _REPEATS], 576, _SAMPLES_PER_RANK * ranks, _BUDGET)
    return statistics.median(_seconds(partial(plan.split, step, ranks)) for step in range(_REPEATS))


def _transport(sizes: list[TextSize]) -> dict[str, Any]:
    rank_step = build_rank_step(plan_of(sizes, 576, len(sizes), _BUDGET), 0, sizes, "7b")
    row = to_row(rank_step)
    return {
        "payload_bytes": row.nbytes,
        "write_payload_s": statistics.median(_seconds(lambda: _send(to_row(rank_step))) for _ in range(_REPEATS)),
        "read_payload_s": statistics.median(_seconds(lambda: from_row(row)) for _ in range(_REPEATS)),
    }


def _send(row: pa.Table) -> None:
    """Copy a row into other memory, as the object store does."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, row.schema) as writer:
        writer.write_table(row)


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
