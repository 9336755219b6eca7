"""Tells a person at once why workers are started again: a line in the log, and a tag of the MLflow run."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from pipeline.run_folder.files import complete_lines
from pipeline.run_folder.restarts import RESTARTS_FILE, describe_cause

logger = logging.getLogger(__name__)

_POLL_S = 0.5


class FailureWatch:
    """Follows the starts of a run's workers until closed; every start but the first is told with its cause."""

    def __init__(self, run_dir: Path, tell: Callable[[int, str], None]) -> None:
        """Watch `run_dir`; `tell` gets the number of restarts so far and what ended the start before."""
        self._run_dir, self._tell = run_dir, tell
        self._first = self._told = len(complete_lines(run_dir / RESTARTS_FILE))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="failure-watch", daemon=True)

    def __enter__(self) -> FailureWatch:
        """Start watching."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Tell what is left, then stop."""
        self._closed.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._closed.wait(_POLL_S):
            self._look()
        self._look()

    def _look(self) -> None:
        try:
            found = len(complete_lines(self._run_dir / RESTARTS_FILE))
            for number in range(self._told + 1, found + 1):
                if number > self._first + 1:
                    self._tell(number - self._first - 1, describe_cause(self._run_dir, number - 1))
                self._told = number
        except OSError as error:  # of a file system that is away for a moment; the run does not depend on this
            logger.debug("%s cannot be read: %s", self._run_dir, error)
