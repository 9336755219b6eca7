"""Everything that is measured on several ranks of one machine, part by part; tiny, on gloo, where there is no GPU.

Nothing here touches a GPU itself: every measurement runs in processes of its own (`rank_processes`).
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

from benchmarks.ranks.cached_features import CACHE_CASES, CACHED, COMPUTED, cache_measurements, compare
from benchmarks.ranks.exchange import measure_collectives
from benchmarks.ranks.rank_agreement import measure_agreement
from benchmarks.ranks.rank_processes import Measure, run_ranks
from benchmarks.ranks.rank_runs import Precision
from benchmarks.ranks.weak_scaling import WEAK_SCALING, compare_cases, measure_case

Size = Literal["full", "tiny"]
RANK_PARTS: Final = ("agreement", "collectives", "scaling", "feature cache")
_LAYER_7B: Final = 202_383_360
_PROJECTOR_7B: Final = 1024 * 4096 + 4096 * 4096
_TIMEOUT_S: Final = 300.0


class Measurement(NamedTuple):
    """One entry of the results."""

    keys: tuple[str, ...]
    measure: Callable[[], dict[str, Any]]


def measurements(size: Size, parts: Sequence[str], folder: Path, wanted: Sequence[str] = ()) -> Iterator[Measurement]:
    """Yield what is to be measured, in order.

    Args:
        size: `full` on GPUs, `tiny` anywhere.
        parts: out of `RANK_PARTS`.
        folder: may be written to.
        wanted: texts of which the name of a scaling case must contain one; none takes all.
    """
    use_gpu = size == "full"
    if "agreement" in parts:
        precisions = get_args(Precision) if use_gpu else ("float32",)
        agreement = partial(measure_agreement, folder / "agreement", precisions, use_gpu=use_gpu)
        yield Measurement(("agreement",), agreement)
    if "collectives" in parts:
        numel = (_LAYER_7B, _PROJECTOR_7B) if use_gpu else (1009, 101)
        exchange = partial(measure_collectives, unit_numel=numel[0], bucket_numel=numel[1])
        yield Measurement(("collectives",), partial(run_ranks, exchange, 2, use_gpu=use_gpu, timeout_s=_TIMEOUT_S))
    if "scaling" in parts:
        yield from _scaling(size, wanted)
    if "feature cache" in parts:
        yield from _feature_cache(size, folder / "cache")


def describe_gpus() -> dict[str, Any]:
    """Return what `nvidia-smi` says of the GPUs and of how they are linked; nothing where there is none."""
    if shutil.which("nvidia-smi") is None:
        return {}
    query = ["nvidia-smi", "--query-gpu=name,memory.total,power.limit,driver_version", "--format=csv,noheader"]
    calls = {"gpus": query, "links": ["nvidia-smi", "topo", "-m"]}
    done = {name: subprocess.run(call, capture_output=True, text=True, check=False) for name, call in calls.items()}
    return {name: one.stdout.splitlines() for name, one in done.items()}


def _scaling(size: Size, wanted: Sequence[str]) -> Iterator[Measurement]:
    for cases in WEAK_SCALING[size]:
        found: dict[str, dict[str, Any]] = {}
        for case in cases:
            name = f"{case.scenario.name}, {case.label}"
            if not wanted or any(text in name for text in wanted):
                measure, keys = partial(measure_case, case), ("scaling", case.scenario.name, case.label)
                yield Measurement(keys, partial(_kept, found, keys[-1], measure, case.num_ranks, size))
        if len(found) > 1:
            keys = ("scaling", cases[0].scenario.name, f"{cases[-1].label}, against one")
            yield Measurement(keys, partial(compare_cases, *found.values()))


def _feature_cache(size: Size, folder: Path) -> Iterator[Measurement]:
    found: dict[str, dict[str, Any]] = {}
    for name, measure in cache_measurements(CACHE_CASES[size], folder, use_gpu=size == "full"):
        yield Measurement(("feature cache", name), partial(_kept, found, name, measure, 1, size))
    if found.keys() >= {COMPUTED, CACHED}:
        yield Measurement(("feature cache", "comparison"), partial(compare, found[COMPUTED], found[CACHED]))


def _kept(found: dict[str, dict[str, Any]], name: str, measure: Measure, num_ranks: int, size: Size) -> dict[str, Any]:
    """Run a measurement and keep its result for a comparison later."""
    found[name] = run_ranks(measure, num_ranks, use_gpu=size == "full", timeout_s=_TIMEOUT_S)
    return found[name]
