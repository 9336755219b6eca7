"""The newest lines of a run's metrics file, read from its end: the file of a long run has hundreds of megabytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.run_folder.files import parse_entry
from pipeline.run_folder.metrics_log import METRICS_FIELDS

_TAIL_BYTES = 1 << 20


def newest_entry(path: Path) -> dict[str, Any] | None:
    """Return the last complete line of a metrics file; None without one."""
    return next(_newest_first(path), None)


def measured_before(path: Path, step: int) -> dict[str, Any] | None:
    """Return the line of a metrics file about the step before a checkpoint; None if it is not near the end."""
    return next((entry for entry in _newest_first(path) if entry["step"] == step - 1), None)


def _newest_first(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        complete, _, _ = file.read().rpartition(b"\n")
    for line in reversed(complete.split(b"\n")):  # the first one may be cut
        if (entry := parse_entry(line, METRICS_FIELDS)) is not None:
            yield entry
