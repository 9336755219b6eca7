"""One job at a time in a background thread; its error surfaces when the next one is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait


class BackgroundWriter:
    """Runs jobs one after the other in a thread, at most one in flight."""

    def __init__(self) -> None:
        # its thread is joined when the interpreter ends, so a process that fails elsewhere still finishes writing
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-writer")
        self._job: Future[float] | None = None
        self.last_duration_s = 0.0
        """Seconds that the last finished job took."""

    def finish(self, timeout_s: float | None = None) -> Exception | None:
        """Wait for the job in flight; returns its error, once, and None when all is well or the time is up."""
        job = self._job
        if job is None or not wait([job], timeout_s).done:
            return None
        self._job = None
        error = job.exception()
        if error is None:
            self.last_duration_s = job.result()
            return None
        if not isinstance(error, Exception):
            raise error
        return error

    def start(self, job: Callable[[], object]) -> None:
        """Run a job in the background; the one before must have been finished."""
        assert self._job is None, "finish the job in flight first"

        def timed() -> float:
            started = time.perf_counter()
            job()
            return time.perf_counter() - started

        self._job = self._threads.submit(timed)
