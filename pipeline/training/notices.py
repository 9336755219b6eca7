"""Notices that a run should stop or that a machine is about to leave, as the training loop asks for them.

A launcher decides where they come from: SIGTERM of this process (here), or the driver's SIGTERM and Ray's node drains
(`pipeline.launch.ray_notices`).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

_SAME_REQUEST_S = 5.0  # the longest that a copy of a request may take, also on a busy machine


class Notices(Protocol):
    """What one rank knows about its own end."""

    def stop_requested(self) -> bool:
        """Whether the run should end after a checkpoint; cheap, asked every step, ranks may differ."""
        ...

    def check_is_due(self) -> bool:
        """Whether it is time for `machine_is_leaving`; cheap, asked every step, ranks may differ."""
        ...

    def machine_is_leaving(self) -> bool:
        """Whether a machine of the run will be taken away; asked on all ranks at once, all get the same answer."""
        ...


class SignalNotices:
    """SIGTERM of this process; nothing is known of its machine."""

    def __init__(self, requested: Callable[[], bool]) -> None:
        self._requested = requested

    def stop_requested(self) -> bool:
        """Whether SIGTERM came."""
        return self._requested()

    def check_is_due(self) -> bool:
        """Never: there is nobody to ask."""
        return False

    def machine_is_leaving(self) -> bool:
        """Never known."""
        return False


class Interval:
    """True once per so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._last = seconds, time.monotonic()

    def is_over(self) -> bool:
        """Whether the interval is over; starts the next one if so."""
        now = time.monotonic()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True


@contextmanager
def sigterm_as_request() -> Iterator[threading.Event]:
    """Turn the first SIGTERM inside the block into a set event; one that comes later ends the process at once.

    A request may come twice: a cluster sends it to all processes of a job, of which a launcher (torchrun, `timeout`)
    passes on its own. So another SIGTERM counts some seconds after the first, or never under torchrun, which kills
    ranks that take too long. This goes on after the block if the process was asked, for then it is about to end.

    Only the main thread may install handlers; elsewhere the event is never set.
    """
    requested = threading.Event()
    same_request: Interval | None = None

    def on_sigterm(_signum: int, _frame: object) -> None:
        nonlocal same_request
        if same_request is None:
            same_request = Interval(_SAME_REQUEST_S)
            requested.set()
        elif same_request.is_over() and "TORCHELASTIC_RUN_ID" not in os.environ:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():
        yield requested
        return
    before = signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield requested
    finally:
        if not requested.is_set():
            signal.signal(signal.SIGTERM, before)
