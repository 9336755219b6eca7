"""Send what a run folder has and the server has not: journal operations, then metric lines, in order, at least once.

Sending again is harmless: operations are idempotent, and MLflow keeps one row of equal (key, time, step, value). A step
that was computed again has another time; where that may be, the server is asked which steps it has.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

from pipeline.tracking.journal import (
    METRICS_NAME,
    RUN_DIR_TAG,
    AnyOperation,
    Journal,
    LogArtifacts,
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
        self._looked_again = False
        """For artifacts that were missing."""
        self._steps_there: dict[str, set[int]] = {}
        """By metric, where the server was asked."""
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
        if not self._looked_again:
            self._look_for_missing()
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
        self._advance(connect(self.state, opening))
        self._steps_there.clear()
        self._verified = True

    def _openings(self) -> Iterator[OpenRun]:
        return (entry for entry in self._journal.read() if isinstance(entry, OpenRun))

    def _look_for_missing(self) -> None:
        """Send artifacts that were not there when their turn came, and are now."""
        missing = self.state.missing_artifacts
        for number, operation in self._journal.numbered() if missing else ():
            if number in missing:
                self._send_operation(number, operation)
        self._looked_again = True

    def _send_operation(self, number: int, operation: AnyOperation) -> None:
        from pipeline.tracking.mlflow_run import MlflowRun

        assert self.state.run_id is not None
        missing = set(self.state.missing_artifacts) - {number}
        try:
            if isinstance(operation, LogArtifacts):
                operation = operation.model_copy(update={"path": str(self._place_of(operation))})
            MlflowRun(self.state.tracking_uri, self.state.run_id).apply(operation)
        except FileNotFoundError as error:
            logger.error("%s, line %d: not sent: %s", self._journal.path, number, error)
            missing.add(number)
        except Exception as error:
            self._drop_if_refused(error, f"operation {operation.kind!r}", 1)
        update = {
            "num_operations": max(number, self.state.num_operations),
            "missing_artifacts": tuple(sorted(missing)),
        }
        self._advance(self.state.model_copy(update=update))

    def _place_of(self, artifacts: LogArtifacts) -> Path:
        """Return where artifacts are.

        Journals of older versions hold absolute paths; in a run folder that was moved since, they are at the same
        place in it.

        Raises:
            FileNotFoundError: they are nowhere.
        """
        written = Path(artifacts.path)
        homes = [Path(home) for opening in self._openings() if (home := opening.tags.get(RUN_DIR_TAG))]
        inside = [written.relative_to(home) for home in homes if written.is_relative_to(home)]
        for path in (written, *inside):
            if (self._run_dir / path).exists():  # which leaves an absolute path as it is
                return self._run_dir / path
        raise FileNotFoundError(
            f"artifact {self._run_dir / written}: no such file or folder; put it back, then "
            f"`ray-llava mlflow-replay {self._run_dir}` sends it"
        )

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
            self._advance(self.state.model_copy(update={"metrics_offset_bytes": batch_end}))

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
        from pipeline.tracking.mlflow_run import MlflowRun

        assert self.state.run_id is not None
        try:
            MlflowRun(self.state.tracking_uri, self.state.run_id).log_points(points)
        except Exception as error:
            self._drop_if_refused(error, f"metrics of steps {points[0].step} to {points[-1].step}", len(points))
        self._advance(self.state.model_copy(update={"metrics_offset_bytes": end_offset_bytes}))

    def _drop_if_refused(self, error: Exception, what: str, num_records: int) -> None:
        """Return if a record must be left out because the server will never take it; otherwise raise `error`."""
        from pipeline.tracking.mlflow_run import is_refusal

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
