"""Running the jobs of a conversion in the processes of one machine, without Ray."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

from pipeline.shards.index import RunMap, run_serially


def local_run_map(num_workers: int) -> RunMap:
    """Return a `RunMap` over processes; one worker runs in this process.

    Raises:
        ValueError: fewer than one worker.
    """
    if num_workers < 1:
        raise ValueError(f"{num_workers} workers: expected at least 1")
    if num_workers == 1:
        return run_serially

    def run(function: Callable[[Any], Any], items: Sequence[Any], /) -> Iterable[Any]:
        return _run(function, items, num_workers)

    return run


def _run(function: Callable[[Any], Any], items: Sequence[Any], num_workers: int) -> Iterator[Any]:
    # fork would copy the locks of this process's threads in whatever state they are
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(min(num_workers, max(1, len(items))), mp_context=context) as pool:
        pending: deque[Future[Any]] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * num_workers:  # keeps the parts of a large listing from all being in memory
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
