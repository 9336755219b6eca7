"""What a person sees while a run trains: a live bar on a terminal, plain lines elsewhere (job logs, CI).

Reads metrics.jsonl from the launching process, so the workers print nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipeline.run_folder.files import complete_size, parse_entry
from pipeline.run_folder.metrics_log import METRICS_FIELDS

logger = logging.getLogger(__name__)

_POLL_S = 0.25
_LINE_EVERY_S = 5.0


class ProgressReporter:
    """Follows the metrics file of a run until closed."""

    def __init__(self, metrics_path: Path, *, name: str, total_steps: int, console: Console) -> None:
        """Report on `metrics_path`; lines already there belong to an earlier start and are not repeated."""
        self._path, self._name, self._total_steps, self._console = metrics_path, name, total_steps, console
        self._offset = complete_size(metrics_path)  # what follows is cut off by the run
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    def __enter__(self) -> ProgressReporter:
        """Start reporting."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Report what is still unread, then stop."""
        self._closed.set()
        self._thread.join()

    def _follow(self) -> None:
        if self._console.is_terminal:
            self._follow_with_bar()
        else:
            self._follow_with_lines()

    def _follow_with_bar(self) -> None:
        columns = (
            TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("eta"), TimeRemainingColumn(), TextColumn("{task.fields[rates]}"),
        )  # fmt: skip
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(self._name, total=self._total_steps, rates="starting workers")
            while not self._is_over():
                for entry in self._unread():
                    progress.update(task, completed=entry["step"] + 1, rates=describe(entry["metrics"]))

    def _follow_with_lines(self) -> None:
        self._console.print(f"{self._name}: starting workers")
        started, first_step, printed = time.monotonic(), None, 0.0
        while not self._is_over():
            for entry in self._unread():
                step, now = entry["step"], time.monotonic()
                if first_step is None:
                    started, first_step = now, step
                if now - printed > _LINE_EVERY_S or step + 1 == self._total_steps:
                    printed = now
                    done = max(1, step - first_step)
                    eta_s = (self._total_steps - step - 1) * (now - started) / done
                    rates = describe(entry["metrics"])
                    self._console.print(f"{self._name}: step {step + 1}/{self._total_steps} {rates} eta {eta_s:.0f}s")

    def _is_over(self) -> bool:
        """Wait one poll; true once closed and everything was read."""
        if self._closed.is_set():
            return not self._path.exists() or self._path.stat().st_size <= self._offset
        self._closed.wait(_POLL_S)
        return False

    def _unread(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        start, complete = self._offset, data[: data.rfind(b"\n") + 1]
        # a last line without its end belongs to a killed writer once the run is over, and is skipped then
        self._offset += len(data) if self._closed.is_set() else len(complete)
        entries = [parse_entry(line, METRICS_FIELDS) for line in complete.split(b"\n")[:-1]]
        if None in entries:
            logger.warning("%s: a line after byte %d is not a metrics entry and is not shown", self._path, start)
        return [entry for entry in entries if entry is not None]


def describe(metrics: dict[str, float]) -> str:
    """Render the numbers of a step in one line."""
    return (
        f"loss {metrics['train/loss']:.4f} | {metrics['perf/samples_per_s']:.1f} samples/s "
        f"{metrics['perf/images_per_s']:.1f} images/s {metrics['perf/tokens_per_s']:.0f} tokens/s | "
        f"data wait {100 * metrics['perf/data_wait_fraction']:.0f}%"
        + (f" MFU {100 * metrics['perf/mfu']:.0f}%" if "perf/mfu" in metrics else "")
    )
