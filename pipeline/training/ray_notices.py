"""Stop requests and node drains under Ray: the driver gets SIGTERM, its workers must hear of it.

Train functions run in threads of worker processes, which get no signal. A small actor holds the request; a worker keeps
one unanswered call to it, so that asking costs microseconds and no file system or polling is involved.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.train

from pipeline.training.notices import Interval, sigterm_as_request

_DRAIN_CHECK_INTERVAL_S = 2.0  # a collective of a few milliseconds; the shortest cloud notice is 30 s


class StopRequest:
    """Remembers, as an actor, whether the run was asked to stop."""

    def __init__(self) -> None:
        self._requested = asyncio.Event()

    async def request(self) -> None:
        """Ask the run to stop."""
        self._requested.set()

    async def wait(self) -> bool:
        """Return once the run was asked to stop."""
        return await self._requested.wait()


@contextmanager
def forward_sigterm() -> Iterator[Any]:
    """Yield the handle of a `StopRequest` that the first SIGTERM of this process sets."""
    # as large as any number of workers, each of which keeps one call waiting
    options = {"num_cpus": 0, "max_concurrency": 10_000, "max_restarts": -1, "max_task_retries": -1}
    stop = ray.remote(**options)(StopRequest).remote()
    over = threading.Event()
    with sigterm_as_request() as requested:

        def forward() -> None:  # not in the signal handler, which may interrupt a call into Ray
            while not over.is_set():
                if requested.wait(0.2):
                    ray.get(stop.request.remote())
                    return

        thread = threading.Thread(target=forward, name="forward-sigterm", daemon=True)
        thread.start()
        try:
            yield stop
        finally:
            over.set()
            thread.join()
            ray.kill(stop)


class RayNotices:
    """What one Ray Train worker knows: the driver's stop request, and nodes that are being drained."""

    def __init__(self, stop: Any) -> None:
        """Listen to `stop`, the handle of a `StopRequest`."""
        self._answer = stop.wait.remote()
        self._interval = Interval(_DRAIN_CHECK_INTERVAL_S)

    def stop_requested(self) -> bool:
        """Whether the driver was asked to stop."""
        ready, _ = ray.wait([self._answer], timeout=0)
        return bool(ready)

    def check_is_due(self) -> bool:
        """Whether the last look at the nodes is some seconds ago."""
        return self._interval.is_over()

    def machine_is_leaving(self) -> bool:
        """Whether a node with workers of this run is being drained or preempted; a collective."""
        return ray.train.get_preemption_info() is not None
