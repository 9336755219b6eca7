"""Log lines of this project in processes that Ray starts, written so that the driver finds them among Ray's own."""

from __future__ import annotations

import json
import logging
import sys
from typing import Final, NamedTuple

MARK: Final = "ray-llava-log "
_PACKAGES = ("jobs", "pipeline", "model")


class WorkerLine(NamedTuple):
    """One log record of a worker."""

    level: int
    logger: str
    message: str


class _Marking(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return the record in one line."""
        return MARK + json.dumps([record.levelno, record.name, record.getMessage()])


def mark_own_lines() -> None:
    """Write this project's log records as marked lines to stderr, in a process that Ray started; others stay as set up.

    A second call changes nothing.
    """
    from ray._private import worker

    if worker.global_worker.mode == worker.WORKER_MODE:
        _mark()


def _mark() -> None:
    for name in _PACKAGES:
        logger = logging.getLogger(name)
        if not any(isinstance(handler.formatter, _Marking) for handler in logger.handlers):
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(_Marking())
            logger.addHandler(handler)
            logger.propagate = False


def parse_line(line: str) -> WorkerLine | None:
    """Return the record in a line that a worker printed; None for any other line."""
    _, mark, text = line.partition(MARK)
    if not mark:
        return None
    try:
        level, logger, message = json.loads(text)
        return WorkerLine(int(level), str(logger), str(message))
    except (ValueError, TypeError):  # cut, or two lines in one
        return None
