"""A function over a list of items as a Ray Data job on all machines of a cluster: how shards are indexed and written.

Ray Data hands out one task per item, has a bounded number of them under way, and repeats those whose machine or
process is lost.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.data import DataContext

from pipeline.parallel.task_numbers import NUMBER, read_task_numbers

_MAX_RETRIES = 5  # deaths over a neighbour's task count too, where tasks are queued at one process
_NEVER = -1
_TALKATIVE = {  # about starts, ends, and progress bars, of which callers have their own
    "ray.data._internal.execution.streaming_executor": logging.WARNING,
    "ray.data._internal.progress": logging.ERROR,
}


@dataclass(frozen=True)
class _Outcome:
    """What became of an item. An error travels as a value, since Ray Data would hide its class."""

    result: Any = None
    error: Exception | None = None


def map_on_cluster(function: Callable[[Any], Any], items: Sequence[Any], /) -> Iterator[Any]:
    """Apply a picklable function to items on the Ray cluster that was joined; results come in order (a `RunMap`).

    Items are taken out of their sequence where they are worked on, so it may make them as they are asked for.

    Raises:
        Exception: what the function raised, for the first item over which it did.
        ray.exceptions.RayError: a task lost its process or machine again and again.
    """
    if not items:
        return
    work = ray.put((function, items))

    def apply(row: dict[str, int]) -> dict[str, _Outcome]:
        function, items = ray.get(work)
        try:
            return {"outcome": _Outcome(result=function(items[row[NUMBER]]))}
        except Exception as error:
            return {"outcome": _Outcome(error=error)}

    context = DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.execution_no_progress_timeout_s = _NEVER  # reading a large shard may take any time
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name, level in _TALKATIVE.items():
        logging.getLogger(name).setLevel(level)
    with DataContext.current(context), warnings.catch_warnings():
        # max_retries has no named parameter in Ray 2.60, whose warning asks for named parameters only
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        rows = read_task_numbers(len(items)).map(apply, num_cpus=1, max_retries=_MAX_RETRIES).iter_rows()
    for row in rows:
        outcome: _Outcome = row["outcome"]
        if outcome.error is not None:
            raise outcome.error
        yield outcome.result
