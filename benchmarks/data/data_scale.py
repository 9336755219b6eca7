"""What grows with the data set: planning of many samples, validation of many shards, memory over many samples."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.data.loaders import build_source, write_caption_shards
from pipeline.index.build import ensure_index
from pipeline.plan.epochs import EpochOrder
from pipeline.plan.plan import Plan, check_lengths
from pipeline.plan.sources import Sources
from pipeline.shards.writer import write_shards
from pipeline.stream.rank_step import build_rank_step

_GLOBAL_BATCH = 256
_RANKS = 8
_BATCH = 32


def measure_planning(num_samples: int, num_steps: int = 200) -> dict[str, Any]:
    """Plan a run over a made-up index in a process of its own.

    Returns:
        Resident bytes of that process after building the plan and after the steps, and milliseconds per step, each of
        which includes the cut over 8 ranks.
    """
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_plan, num_samples, num_steps).result()


def _plan(num_samples: int, num_steps: int) -> dict[str, Any]:
    process = psutil.Process()
    rng = np.random.default_rng(0)
    # drawn in place: the lengths of an index come from a file, without a second copy of them
    num_tokens = rng.integers(600, 2048, num_samples, dtype=np.int32)
    started = time.perf_counter()
    usable = check_lengths(num_tokens, 4096)
    plan = Plan(
        num_tokens=num_tokens,
        usable=usable,
        order=EpochOrder(len(usable), 0, _GLOBAL_BATCH, 1),
        sources=Sources((), (num_samples,)),
        data_fingerprint="benchmark",
        seed=0,
        max_steps=None,
        micro_batch_tokens=4096,
    )
    built_s = time.perf_counter() - started
    times = []
    for step in rng.integers(0, plan.total_steps, num_steps).tolist():
        started = time.perf_counter()
        plan.split(step, _RANKS)
        times.append(time.perf_counter() - started)
    return {
        "samples": num_samples,
        "build_s": built_s,
        "step_ms_median": float(np.median(times) * 1e3),
        "step_ms_slowest": max(times) * 1e3,
        "rss_gib": process.memory_info().rss / 2**30,
        "rss_peak_gib": _peak_bytes() / 2**30,
    }


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM; this measurement needs Linux")


def measure_validation(folder: Path, num_shards: int) -> dict[str, Any]:
    """Time building the index of many small shards, finding it up to date, and adding one shard."""
    text = '{"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}'
    shards: list[str] = []
    for number in range(num_shards + 1):
        samples = [{"__key__": f"{number:05d}-{idx}", "json": text} for idx in range(5)]
        shards += write_shards(samples, folder / f"s{number:05d}-%d.tar")
    times = {}
    for name, part in (("build_s", shards[:-1]), ("validate_s", shards[:-1]), ("add_one_shard_s", shards)):
        started = time.perf_counter()
        ensure_index(part, folder / "index")
        times[name] = time.perf_counter() - started
    return {"shards": num_shards, **times}


def measure_memory(folder: Path, num_samples: int, first: int) -> dict[str, Any]:
    """Build rank-steps one after the other in this process and follow its resident set.

    Returns:
        Resident bytes at points from sample `first` on, and the slope of a straight line through them.
    """
    num_written = 2048
    source = build_source(write_caption_shards(folder, num_written), folder, -(-num_samples // num_written))
    process = psutil.Process()
    points: list[tuple[int, int]] = []
    every = max(1, (num_samples - first) // (20 * _BATCH))
    for step in range(num_samples // _BATCH):
        build_rank_step(source, source.plan.split(step, 1)[0])
        done = (step + 1) * _BATCH
        if done >= first and step % every == 0:
            points.append((done, process.memory_info().rss))
    samples, resident = np.array(points, dtype=np.float64).T
    return {
        "samples": num_samples,
        "rss_mib_first": resident[0] / 2**20,
        "rss_mib_last": resident[-1] / 2**20,
        "slope_bytes_per_sample": float(np.polyfit(samples, resident, 1)[0]),
    }
