"""Stop requests and node drains under Ray: the driver gets the signal and must notify its workers.

Train functions run in threads of worker processes, which get no signal. A small actor holds the request; a worker keeps
one unanswered call to it, so that asking costs microseconds and no file system or polling is involved. Where no worker
can be notified, because the cluster has no room for any, the driver is interrupted.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.exceptions
import ray.train

from pipeline.parallel.stop_signals import StopRequestedError, StopRequests, stop_requests
from pipeline.training.notices import Interval

logger = logging.getLogger(__name__)

_NO_WORKERS_TIMEOUT_S = 10.0  # longer than workers that have just ended take to be noticed
_REQUEST_TIMEOUT_S = 30.0
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
def forward_stop_signals() -> Iterator[Any]:
    """Yield the handle of a `StopRequest` that the first stop signal to this process sets.

    Raises:
        StopRequestedError: the signal came, and there is no training worker to notify.
    """
    # as large as any number of workers, each of which keeps one call waiting
    options = {"num_cpus": 0, "max_concurrency": 10_000, "max_restarts": -1, "max_task_retries": -1}
    stop = ray.remote(**options)(StopRequest).remote()
    over = threading.Event()
    with stop_requests() as requests:
        # not in the signal handler, which may interrupt a call into Ray
        thread = threading.Thread(target=_forward, args=(requests, stop, over), name="forward-stop", daemon=True)
        thread.start()
        was_ended = False
        try:
            yield stop
        except KeyboardInterrupt:
            was_ended = True
            if not requests.ends_now:
                raise
            raise StopRequestedError(
                "stopped as asked while no worker was training; the same command resumes the run"
            ) from None
        finally:
            over.set()
            thread.join()
            if not was_ended:  # workers are gone, and Ray does not report their calls as failed
                ray.kill(stop)


def _forward(requests: StopRequests, stop: Any, over: threading.Event) -> None:
    """Pass a request on to the workers; end the main thread's waiting if there is no worker to notify."""
    while not requests.wait(0.2):
        if over.is_set():
            return
    try:
        ray.get(stop.request.remote(), timeout=_REQUEST_TIMEOUT_S)
        _wait_for_workers_to_be_gone(over)
    except ray.exceptions.RayError:  # the head or the actor is gone: nothing to wait for
        logger.warning("the request to stop could not be passed on to the workers", exc_info=True)
    if not over.is_set():
        requests.end_now()


def _wait_for_workers_to_be_gone(over: threading.Event) -> None:
    """Return once this job has had no training worker for some seconds, or the run is over."""
    seen = time.monotonic()
    while time.monotonic() - seen < _NO_WORKERS_TIMEOUT_S and not over.wait(0.5):
        if any(actor["ActorClassName"] == "RayTrainWorker" for actor in _living_actors()):
            seen = time.monotonic()


def _living_actors() -> list[dict[str, Any]]:
    job_id = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    actors: dict[str, dict[str, Any]] = ray._private.state.actors(job_id=job_id, actor_state_name="ALIVE")
    return list(actors.values())


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
