"""The state of a run on Ray's metrics endpoint, where Prometheus finds it: set by the driver, from the run's files.

Ray adds `ray_` to every name. `deploy/grafana/ray_llava.json` shows them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from ray.util.metrics import Gauge

from pipeline.checkpoint.storage import CheckpointStorage
from pipeline.launch.metrics_tail import newest_entry
from pipeline.run_folder.files import complete_lines
from pipeline.run_folder.metrics_log import METRICS_FILE
from pipeline.run_folder.restarts import RESTARTS_FILE

logger = logging.getLogger(__name__)

_POLL_S = 5.0
_POLL_OBJECTS_S = 30.0  # a request each


class _Meaning(NamedTuple):
    key: str
    """In metrics.jsonl."""
    text: str


STEP_GAUGES: Final = {
    "llava_loss": _Meaning("train/loss", "Loss of the newest step"),
    "llava_grad_norm": _Meaning("train/grad_norm", "Gradient norm of the newest step"),
    "llava_learning_rate": _Meaning("train/learning_rate", "Learning rate of the newest step"),
    "llava_tokens_per_second": _Meaning("perf/tokens_per_s", "Useful tokens per second, all workers"),
    "llava_images_per_second": _Meaning("perf/images_per_s", "Images per second, all workers"),
    "llava_mfu": _Meaning("perf/mfu", "Share of the devices' bfloat16 peak; missing where the peak is unknown"),
    "llava_data_wait_fraction": _Meaning("perf/data_wait_fraction", "Share of the step spent waiting for data"),
    "llava_step_time_seconds": _Meaning("perf/step_time_s", "Wall time of the newest step"),
    "llava_samples_trained": _Meaning("data/samples_trained", "Samples trained so far"),
    "llava_samples_quarantined": _Meaning("data/samples_quarantined", "Samples that could not be used, so far"),
}
"""Set from the newest line of metrics.jsonl."""
RUN_GAUGES: Final = {
    "llava_step": "Optimizer steps done",
    "llava_total_steps": "Optimizer steps of the whole run",
    "llava_step_age_seconds": "Time since the newest step was logged, or since the start",
    "llava_checkpoint_step": "Steps in the newest checkpoint; 0 if there is none",
    "llava_checkpoint_age_seconds": "Time since the newest checkpoint was seen, or since the start",
    "llava_restarts": "Starts of the workers after the first one, by this command",
}
"""Set from the other files of a run."""
_TAGS = ("run", "stage")


class RunGauges:
    """Keeps the gauges of a run up to date until closed."""

    def __init__(
        self,
        tags: Mapping[str, str],
        run_dir: Path,
        storage: CheckpointStorage,
        total_steps: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Begin with what is there.

        Args:
            tags: name and stage, as `run` and `stage`.
            run_dir: the run's working folder.
            storage: of its checkpoints.
            total_steps: optimizer steps of the whole run.
            clock: seconds since the epoch.
        """
        self._tags, self._total_steps, self._clock = dict(tags), total_steps, clock
        self._run_dir, self._storage = run_dir, storage
        self._gauges: dict[str, Any] = {}
        self._started = self._saved_at = clock()
        self._saved_step: int | None = None
        self._first_start = len(complete_lines(self._run_dir / RESTARTS_FILE)) + 1
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="run-gauges", daemon=True)

    def __enter__(self) -> RunGauges:
        """Start following the run."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop; Ray forgets the gauges with this process."""
        self._closed.set()
        self._thread.join()

    def values(self) -> dict[str, float]:
        """Return all gauges as they are now; values that are not known yet are missing."""
        now, entry = self._clock(), newest_entry(self._run_dir / METRICS_FILE)
        step, metrics, logged_at = (-1, {}, self._started) if entry is None else _parts(entry)
        saved = max((generation.step for generation in self._storage.generations()), default=0)
        if self._saved_step is not None and saved != self._saved_step:
            self._saved_at = now
        self._saved_step = saved
        starts = len(complete_lines(self._run_dir / RESTARTS_FILE))
        found = {
            "llava_step": step + 1.0,
            "llava_total_steps": float(self._total_steps),
            "llava_step_age_seconds": now - max(logged_at, self._started),
            "llava_checkpoint_step": float(saved),
            "llava_checkpoint_age_seconds": now - self._saved_at,
            "llava_restarts": float(max(0, starts - self._first_start)),
        }
        measured = {name: metrics.get(meaning.key) for name, meaning in STEP_GAUGES.items()}
        return found | {name: float(value) for name, value in measured.items() if value is not None}

    def _follow(self) -> None:
        interval_s = _POLL_OBJECTS_S if "://" in self._storage.location else _POLL_S
        while True:
            try:
                self._publish(self.values())
            except OSError as error:  # storage that is away for a moment; the run does not depend on this
                logger.debug("gauges of %s not updated: %s", self._tags["run"], error)
            if self._closed.wait(interval_s):
                return

    def _publish(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if name not in self._gauges:
                text = STEP_GAUGES[name].text if name in STEP_GAUGES else RUN_GAUGES[name]
                gauge = Gauge(name, description=text, tag_keys=_TAGS)
                gauge.set_default_tags(self._tags)
                self._gauges[name] = gauge
            self._gauges[name].set(value)


def _parts(entry: Mapping[str, Any]) -> tuple[int, Mapping[str, float], float]:
    return int(entry["step"]), entry["metrics"], float(entry.get("time_s", 0.0))
