"""metrics.jsonl of a run folder: one line per optimizer step.

The file is the truth about a run's progress; trackers read it. A step that is computed again after a restart keeps
its first line, so that a chart shows every step once.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path

from pipeline.run_folder.files import cut_unfinished_line, read_entries, write_line

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
METRICS_FIELDS = ("step", "metrics")
"""What every line of it has."""


class MetricsLog:
    """Append-only metrics file of a run; survives being killed, or a full disk, in the middle of a line."""

    def __init__(self, path: Path) -> None:
        """Open `path`, cutting off a last line that was only half written; other lines that are not entries stay."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._seen: dict[int, dict[str, float]] = {}
        cut_unfinished_line(path)
        for entry in read_entries(path, METRICS_FIELDS):
            self._seen[entry["step"]] = entry["metrics"]
        self._file = path.open("a+b", buffering=0)

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step, once; a repeat with another loss is reported."""
        known = self._seen.get(step)
        if known is None:
            entry = {"step": step, "time_s": round(time.time(), 3), "metrics": dict(metrics)}
            write_line(self._file, json.dumps(entry))
            self._seen[step] = dict(metrics)
        elif known["train/loss"] != metrics["train/loss"]:
            logger.warning(
                "step %d: loss %.9g now, %.9g before the restart; equal only on the same number of workers and device",
                step,
                metrics["train/loss"],
                known["train/loss"],
            )

    def close(self) -> None:
        """Close the file."""
        self._file.close()
