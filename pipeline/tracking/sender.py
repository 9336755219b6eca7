"""Send what a run folder has and the server has not: journal operations, then metric lines, in order, at least once.
Files go their own way, see `artifacts`.

Sending again is harmless: operations are idempotent, and MLflow keeps one row of equal (key, time, step, value). A step
that was computed again has another time; where that may be, the server is asked which steps it has.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.tracking.artifacts import ArtifactSender
from pipeline.tracking.journal import (
    METRICS_NAME,
    Journal,
    MetricPoint,
    Progress,
    SentState,
    load_state,
    read_metric_lines,
    save_state,
)
from pipeline.tracking.operations import HAS_FILES, AnyOperation, LogMetrics, OpenRun

logger = logging.getLogger(__name__)

# mlflow is imported where it is used: it takes two seconds, which the start of a run need not wait for.


class Sender:
    """Copies one run folder to one tracking server. Not thread-safe."""

    def __init__(self, run_dir: Path, tracking_uri: str) -> None:
        self._run_dir = run_dir
        self._journal = Journal(run_dir)
        self._metrics_path = run_dir / METRICS_NAME
        state = load_state(run_dir, tracking_uri)
        save_state(run_dir, state)
        self._progress = Progress(run_dir, state)
        self.artifacts = ArtifactSender(run_dir, self._journal, self._progress)
        """Uploads files, which `send` only notes as pending."""
        self._verified = False
        self._steps_there: dict[str, set[int]] = {}
        """By metric, where the server was asked."""
        self.num_refused = 0
        """Records that the server rejected permanently; each was logged as an error."""
        self._named: set[str] = set()
        """Refused metrics, each of which is logged once."""

    @property
    def state(self) -> SentState:
        """How much the server has."""
        return self._progress.state

    def send(self) -> None:
        """Send everything there is now but files.

        Raises:
            ValueError: the journal holds no opening operation, so there is no run to send to.
            Exception: any error of the server or the client; what was sent before is recorded.
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
        return num_points + len(self._journal.read(self.state.num_operations)) + len(self.state.missing_artifacts)

    def _connect(self) -> None:
        from pipeline.tracking.mlflow_run import bound_client_waiting, connect, quiet_client

        bound_client_waiting()
        quiet_client()
        opening = next(self._openings(), None)
        if opening is None:
            raise ValueError(f"{self._journal.path}: no run was opened in this folder, nothing to send")
        before = self.state
        if (connected := connect(before, opening)) is not before:
            self._progress.replace(connected)
        self._steps_there.clear()
        self._verified = True

    def _openings(self) -> Iterator[OpenRun]:
        return (entry for entry in self._journal.read() if isinstance(entry, OpenRun))

    def _send_operation(self, number: int, operation: AnyOperation) -> None:
        from pipeline.tracking.mlflow_run import MlflowRun

        assert self.state.run_id is not None
        if isinstance(operation, LogMetrics):
            self._log_points(
                [MetricPoint(key, value, operation.step, operation.time_s) for key, value in operation.metrics.items()]
            )
        else:
            try:
                MlflowRun(self.state.tracking_uri, self.state.run_id).apply(operation)
            except Exception as error:
                self._drop_if_refused(error, f"operation {operation.kind!r}")
        has_files = isinstance(operation, HAS_FILES)
        self._progress.advance(num_operations=number, artifact=number if has_files else None)

    def _send_metrics(self) -> None:
        from pipeline.tracking.mlflow_run import MAX_POINTS_PER_CALL

        batch: list[MetricPoint] = []
        batch_end = self.state.metrics_offset_bytes
        for line_end, points in read_metric_lines(self._metrics_path, batch_end):
            if points and self.state.knows_more and self._is_there(points[0]):
                points = []  # a line goes out in one call, so all of it is there
            if batch and len(batch) + len(points) > MAX_POINTS_PER_CALL:
                self._send_points(batch, batch_end)
                batch = []
            batch += points
            batch_end = line_end
        if batch:
            self._send_points(batch, batch_end)
        else:  # lines without points need not be read again
            self._progress.advance(metrics_offset_bytes=batch_end)

    def _is_there(self, point: MetricPoint) -> bool:
        """Tell whether the server has a step of a metric; asked once, before anything is sent by this process."""
        from pipeline.tracking.mlflow_run import MlflowRun

        assert self.state.run_id is not None
        if point.key not in self._steps_there:
            self._verified = False  # unless it answers
            self._steps_there[point.key] = MlflowRun(self.state.tracking_uri, self.state.run_id).steps_of(point.key)
            self._verified = True
        return point.step in self._steps_there[point.key]

    def _send_points(self, points: list[MetricPoint], end_offset_bytes: int) -> None:
        self._log_points(points)
        self._progress.advance(metrics_offset_bytes=end_offset_bytes)

    def _log_points(self, points: Sequence[MetricPoint]) -> None:
        """Send metric values in one call, or where the server refuses that, halves of them down to the refused ones."""
        from pipeline.tracking.mlflow_run import MlflowRun, is_refusal

        assert self.state.run_id is not None
        try:
            MlflowRun(self.state.tracking_uri, self.state.run_id).log_points(points)
        except Exception as error:
            if len(points) > 1 and is_refusal(error):
                points = sorted(points, key=lambda point: point.key)  # a refused name is then in few of the calls
                for half in (points[: len(points) // 2], points[len(points) // 2 :]):
                    self._log_points(half)
                return
            self._drop_if_refused(error, f"metric {points[0].key!r} of step {points[0].step}", points[0].key)

    def _drop_if_refused(self, error: Exception, what: str, name: str | None = None) -> None:
        """Return if a record must be left out because the server will never take it; otherwise raise `error`."""
        from pipeline.tracking.mlflow_run import is_refusal

        self._verified = False
        if not is_refusal(error):
            raise error
        run_id = self.state.run_id
        self._connect()
        if self.state.run_id != run_id:  # the run was deleted: all of it goes to its successor
            raise error
        self.num_refused += 1
        if name is None or name not in self._named:
            logger.error("MLflow run %s: %s refused and left out: %s", run_id, what, error)
        if name is not None:
            self._named.add(name)
