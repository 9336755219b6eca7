"""Where a step's time goes: device kernels of one profiled step, grouped into families, with measured ceilings."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.step.measure import synchronize

_FAMILIES: Final = (
    ("attention", r"flash|fmha|attention|sdpa|cudnn_generated"),
    ("matrix products", r"gemm|nvjet|cutlass|xmma|wgmma|splitk|cublas|conv"),
    ("compiled elementwise", r"^triton|^_gate"),
    ("optimizer and norm of gradients", r"multi_tensor|adam|lpnorm"),
    ("copies and fills", r"memcpy|memset|copy|fill"),
    ("gather and scatter", r"index|gather|scatter|embedding|sort"),
    ("reductions", r"reduce|softmax|norm|logsumexp"),
    ("elementwise", r"elementwise|cat"),
)
"""Family -> pattern of kernel names; the first that matches counts."""


def family_of(kernel: str) -> str:
    """Return the family of a device kernel by its name."""
    name = kernel.lower()
    return next((family for family, pattern in _FAMILIES if re.search(pattern, name)), "other")


def profile_step(step: Callable[[], float], device: torch.device) -> dict[str, Any]:
    """Run one step under the profiler.

    Returns:
        `step_time_s`, `idle_s` (no kernel running), `families` with seconds and kernel launches, and the largest
        kernels of each.
    """
    synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        started = time.perf_counter()
        step()
        synchronize(device)
        step_time_s = time.perf_counter() - started
    families: dict[str, dict[str, Any]] = {}
    for event in profiler.key_averages():
        if event.device_type.name != "CUDA" or event.self_device_time_total <= 0:
            continue
        entry = families.setdefault(family_of(event.key), {"seconds": 0.0, "launches": 0, "largest": []})
        entry["seconds"] += event.self_device_time_total / 1e6
        entry["launches"] += event.count
        entry["largest"].append([event.key[:120], round(event.self_device_time_total / 1e6, 6), event.count])
    for entry in families.values():
        entry["largest"] = sorted(entry["largest"], key=lambda kernel: -kernel[1])[:6]
    busy_s = sum(entry["seconds"] for entry in families.values())
    ordered = dict(sorted(families.items(), key=lambda item: -item[1]["seconds"]))
    return {"step_time_s": step_time_s, "idle_s": max(0.0, step_time_s - busy_s), "families": ordered}


def measure_ceilings(device: torch.device, products: dict[str, tuple[int, int, int]]) -> dict[str, float]:
    """Measure what the device reaches at best: large bfloat16 products of random matrices, and a copy.

    A product repeated for seconds runs at the clock that the power limit allows, which is what training gets.

    Args:
        device: a CUDA device.
        products: name -> (m, n, k) of further products, such as a model's layers.

    Returns:
        TFLOP/s by name, and `copy_tb_per_s` counting bytes read and written.
    """
    rates = {}
    for name, (m, n, k) in {"square 8192": (8192, 8192, 8192), **products}.items():
        left = torch.randn(m, k, device=device, dtype=torch.bfloat16)
        right = torch.randn(n, k, device=device, dtype=torch.bfloat16)
        rates[name] = 2 * m * n * k / _seconds(partial(torch.matmul, left, right.T), device) / 1e12
    left, right = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    rates["square 8192, under load for seconds"] = 2 * 8192**3 / _seconds(lambda: left @ right.T, device, 2000) / 1e12
    source = torch.randn(1 << 30, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    rates["copy_tb_per_s"] = 2 * source.nbytes / _seconds(lambda: target.copy_(source), device) / 1e12
    return rates


def _seconds(call: Callable[[], Any], device: torch.device, repeats: int = 20) -> float:
    """Return the median of `repeats` runs, timed by device events, after warm-up."""
    for _ in range(5):
        call()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for begin, end in events:
        begin.record()
        call()
        end.record()
    synchronize(device)
    times = sorted(begin.elapsed_time(end) for begin, end in events)
    return float(times[len(times) // 2]) / 1e3
