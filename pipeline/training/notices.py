"""Notices that a run should stop or that a machine is about to leave, as the training loop asks for them.

A launcher decides where they come from: signals to this process (here), or signals to the driver and Ray's node drains
(`pipeline.launch.on_ray.notices`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol


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
    """Stop signals of this process only; the machine is not watched."""

    def __init__(self, requested: Callable[[], bool]) -> None:
        self._requested = requested

    def stop_requested(self) -> bool:
        """Whether a stop signal came."""
        return self._requested()

    def check_is_due(self) -> bool:
        """Always false: a single process has no node notices."""
        return False

    def machine_is_leaving(self) -> bool:
        """Always false."""
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
