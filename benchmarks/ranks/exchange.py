"""What exchange between ranks costs: the rates of collectives alone, and how much of a step's they leave uncovered.

Rates count the bytes that pass through every rank: (n - 1) / n of what is gathered or reduce-scattered over n ranks,
twice that of what is all-reduced.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from benchmarks.step.kernels import family_of
from benchmarks.step.measure import synchronize
from pipeline.parallel.ranks import Workers

_REPEATS: Final = 10
_WARMUP: Final = 3
_EXCHANGE: Final = re.compile(r"^nccl(dev)?kernel", re.IGNORECASE)
_NO_KERNEL: Final = re.compile(r"^(nccl:|FSDP::|Optimizer\.|ProfilerStep)")
"""Names of ranges that the profiler draws over kernels."""


class Kernel(NamedTuple):
    """A kernel as the profiler saw it."""

    name: str
    start_s: float
    end_s: float


def measure_collectives(workers: Workers, unit_numel: int, bucket_numel: int) -> dict[str, Any]:
    """Time what sharding does for one unit, and replication for one bucket of gradients.

    Args:
        workers: at least two ranks.
        unit_numel: parameters of a unit, gathered in bfloat16 and reduced in float32; rounded to a multiple of ranks.
        bucket_numel: gradients in one all-reduce, float32.

    Returns:
        By name: `bytes` through each rank, median `time_s`, `gb_per_s`.
    """
    ranks, device = workers.world_size, workers.device
    unit_numel -= unit_numel % ranks
    gathered = torch.empty(unit_numel, dtype=torch.bfloat16, device=device)
    shard = torch.randn(unit_numel // ranks, device=device).bfloat16()
    gradient = torch.randn(unit_numel, device=device)
    own = torch.empty(unit_numel // ranks, device=device)
    bucket = torch.randn(bucket_numel, device=device)
    share = (ranks - 1) / ranks
    calls: dict[str, tuple[Callable[[], Any], float]] = {
        "all-gather of a unit, bfloat16": (
            lambda: dist.all_gather_into_tensor(gathered, shard),
            share * gathered.nbytes,
        ),
        "reduce-scatter of a unit, float32": (
            lambda: dist.reduce_scatter_tensor(own, gradient),
            share * gradient.nbytes,
        ),
        "all-reduce of a bucket, float32": (lambda: dist.all_reduce(bucket), 2 * share * bucket.nbytes),
    }
    found = {}
    for name, (call, num_bytes) in calls.items():
        time_s = workers.max([_seconds(call, device)])[0]
        found[name] = {"bytes": num_bytes, "time_s": time_s, "gb_per_s": num_bytes / time_s / 1e9}
    return found


def profile_exchange(step: Callable[[], float], workers: Workers) -> dict[str, Any]:
    """Run one step on every rank, under the profiler on rank 0, and return what `account_for` finds there."""
    device = workers.device
    synchronize(device)
    if not workers.is_first:
        step()
        synchronize(device)
        return {}
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        started = time.perf_counter()
        step()
        synchronize(device)
        step_time_s = time.perf_counter() - started
    kernels = [
        Kernel(event.name, event.time_range.start / 1e6, event.time_range.end / 1e6)
        for event in profiler.events()
        if event.device_type.name == "CUDA" and not event.is_user_annotation and not _NO_KERNEL.match(event.name)
    ]
    return {"step_time_s": step_time_s, **account_for(kernels, step_time_s)}


def account_for(kernels: Sequence[Kernel], step_time_s: float) -> dict[str, Any]:
    """Split a step's device time.

    Returns:
        `exchange_s` some kernel of exchange runs, which includes its waiting for other ranks; `exposed_s` nothing
        else runs; `compute_s` some other kernel runs; `idle_s` none runs; shares of the step; and seconds
        by kernel of exchange and by family of the others.
    """
    exchange = merge((one.start_s, one.end_s) for one in kernels if _EXCHANGE.match(one.name))
    compute = merge((one.start_s, one.end_s) for one in kernels if not _EXCHANGE.match(one.name))
    either = merge([*exchange, *compute])
    exposed_s = _length(either) - _length(compute)
    by_name: dict[str, float] = {}
    for one in kernels:
        name = one.name.split("(")[0] if _EXCHANGE.match(one.name) else family_of(one.name)
        by_name[name] = by_name.get(name, 0.0) + one.end_s - one.start_s
    return {
        "exchange_s": _length(exchange),
        "exposed_s": exposed_s,
        "compute_s": _length(compute),
        "idle_s": max(0.0, step_time_s - _length(either)),
        "exchange_share": _length(exchange) / step_time_s,
        "exposed_share": exposed_s / step_time_s,
        "seconds_by_kind": dict(sorted(by_name.items(), key=lambda item: -item[1])),
    }


def merge(intervals: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the union of intervals as disjoint ones, in order."""
    merged: list[tuple[float, float]] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def _length(disjoint: Iterable[tuple[float, float]]) -> float:
    return sum(end - start for start, end in disjoint)


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Return the median time of a call, seconds, with the device waited for."""
    times = []
    for number in range(_WARMUP + _REPEATS):
        synchronize(device)
        started = time.perf_counter()
        call()
        synchronize(device)
        if number >= _WARMUP:
            times.append(time.perf_counter() - started)
    return statistics.median(times)
