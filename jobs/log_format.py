"""Log lines as JSON, one object per line, for systems that collect logs: `--log-format json`.

An object has `time` (ISO 8601, UTC), `level`, `logger` and `message`, and `traceback` where an error is a bug.
"""

from __future__ import annotations

import datetime
import io
import json
import logging
import traceback
from typing import Any

from rich.console import Console

_WIDTH = 160  # of tables; JSON has no terminal


class JsonFormatter(logging.Formatter):
    """Formats log records."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as one line of JSON."""
        error = record.exc_info[1] if record.exc_info else None
        return json_line(record.levelname, record.name, record.getMessage(), error, record.created)


class JsonConsole(Console):
    """A console whose every print is one line of JSON, without colours and bars."""

    def __init__(self, *, stderr: bool, level: str) -> None:
        super().__init__(stderr=stderr, force_terminal=False, no_color=True)
        self._level = level

    def print(self, *objects: Any, **options: Any) -> None:
        """Print what rich would, as the message of one line."""
        plain = Console(file=io.StringIO(), width=_WIDTH, no_color=True, force_terminal=False)
        plain.print(*objects, **options)
        text = plain.file.getvalue().rstrip()  # type: ignore[attr-defined]  # the StringIO above
        level = "ERROR" if text.startswith("error:") else self._level
        self.file.write(json_line(level, "ray-llava", text) + "\n")
        self.file.flush()


def json_line(
    level: str, logger: str, message: str, error: BaseException | None = None, created_s: float | None = None
) -> str:
    """Return one line of JSON.

    Args:
        level: Name of the level.
        logger: Name of the logger.
        message: Its text.
        error: Whose traceback to add.
        created_s: Seconds since the epoch; None is now.
    """
    moment = datetime.datetime.now(datetime.UTC)
    if created_s is not None:
        moment = datetime.datetime.fromtimestamp(created_s, datetime.UTC)
    entry = {"time": moment.isoformat(timespec="milliseconds"), "level": level, "logger": logger, "message": message}
    if error is not None:
        entry["traceback"] = "".join(traceback.format_exception(error))
    return json.dumps(entry, ensure_ascii=False)
