"""Send what a run folder has and the server has not: journal operations, then metric lines, in order, at least once.

Sending again is harmless: operations are idempotent, and MLflow keeps one row of equal (key, time, step, value).
"""

import logging
from pathlib import Path

from pipeline.training.tracking.journal import (
    METRICS_NAME,
    AnyOperation,
    Journal,
    MetricPoint,
    OpenRun,
    SentState,
    load_state,
    read_metric_lines,
    save_state,
)

logger = logging.getLogger(__name__)

# mlflow is imported where it is used: it takes two seconds, which the start of a run need not wait for.


class Sender:
    """Copies one run folder to one tracking server. Not thread-safe."""

    def __init__(self, run_dir: Path, tracking_uri: str) -> None:
        self._run_dir = run_dir
        self._journal = Journal(run_dir)
        self._metrics_path = run_dir / METRICS_NAME
        self.state = load_state(run_dir, tracking_uri)
        save_state(run_dir, self.state)
        self._verified = False
        self.num_refused = 0
        """Records that the server rejected for good; each was logged as an error."""

    def send(self) -> None:
        """Send everything there is now.

        Raises:
            ValueError: the journal holds no opening operation, so there is no run to send to.
            Exception: whatever the server or the client raises; what was sent before it is remembered.
        """
        if not self._verified:
            self._connect()
        for number, operation in self._journal.numbered(self.state.num_operations):
            self._send_operation(number, operation)
        self._send_metrics()

    def num_pending(self) -> int:
        """Count the metric values and operations that the server has not confirmed."""
        lines = read_metric_lines(self._metrics_path, self.state.metrics_offset_bytes)
        num_points = sum(len(points) for _, points in lines)
        return num_points + len(self._journal.read(self.state.num_operations))

    def _connect(self) -> None:
        from pipeline.training.tracking.mlflow_run import bound_client_waiting, connect

        bound_client_waiting()
        opening = next((entry for entry in self._journal.read() if isinstance(entry, OpenRun)), None)
        if opening is None:
            raise ValueError(f"{self._journal.path}: no run was opened in this folder, nothing to send")
        self._advance(connect(self.state, opening))
        self._verified = True

    def _send_operation(self, number: int, operation: AnyOperation) -> None:
        from pipeline.training.tracking.mlflow_run import MlflowRun

        assert self.state.run_id is not None
        try:
            MlflowRun(self.state.tracking_uri, self.state.run_id).apply(operation)
        except Exception as error:
            self._drop_if_refused(error, f"operation {operation.kind!r}", 1)
        self._advance(self.state.model_copy(update={"num_operations": number}))

    def _send_metrics(self) -> None:
        from pipeline.training.tracking.mlflow_run import MAX_POINTS_PER_CALL

        batch: list[MetricPoint] = []
        batch_end = self.state.metrics_offset_bytes
        for line_end, points in read_metric_lines(self._metrics_path, batch_end):
            if batch and len(batch) + len(points) > MAX_POINTS_PER_CALL:
                self._send_points(batch, batch_end)
                batch = []
            batch += points
            batch_end = line_end
        if batch:
            self._send_points(batch, batch_end)

    def _send_points(self, points: list[MetricPoint], end_offset_bytes: int) -> None:
        from pipeline.training.tracking.mlflow_run import MlflowRun

        assert self.state.run_id is not None
        try:
            MlflowRun(self.state.tracking_uri, self.state.run_id).log_points(points)
        except Exception as error:
            self._drop_if_refused(error, f"metrics of steps {points[0].step} to {points[-1].step}", len(points))
        self._advance(self.state.model_copy(update={"metrics_offset_bytes": end_offset_bytes}))

    def _drop_if_refused(self, error: Exception, what: str, num_records: int) -> None:
        """Return if a record must be left out because the server will never take it; otherwise raise `error`."""
        from pipeline.training.tracking.mlflow_run import is_refusal

        self._verified = False
        if not is_refusal(error):
            raise error
        run_id = self.state.run_id
        self._connect()
        if self.state.run_id != run_id:  # the run was deleted meanwhile: all of it goes to its successor
            raise error
        self.num_refused += num_records
        logger.error("MLflow run %s: %s refused and left out: %s", run_id, what, error)

    def _advance(self, state: SentState) -> None:
        if state != self.state:
            save_state(self._run_dir, state)
            self.state = state
