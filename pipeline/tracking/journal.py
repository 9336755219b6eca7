"""What a run folder remembers for its tracker: operations to perform, metrics to send, and how far sending got.

All of it is in files, so nothing is lost when a process dies or the server is unreachable. Knows nothing of MLflow.
"""

import json
import logging
import shlex
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.run_folder.files import append_line, complete_lines, cut_unfinished_line, replace_file
from pipeline.run_folder.place import mirror_of
from pipeline.tracking.credentials import without_credentials
from pipeline.tracking.operations import AnyOperation, parse_operation

logger = logging.getLogger(__name__)

JOURNAL_NAME = "tracking.jsonl"
METRICS_NAME = "metrics.jsonl"
STATE_NAME = "mlflow.json"
RUN_DIR_TAG = "ray_llava.run_dir"
"""Of an opening: where the run folder was then."""


class SentState(BaseModel):
    """How much of a run folder a tracking server has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_key: str
    """Our own identity of the run; finds it on the server when the answer to its creation got lost."""
    tracking_uri: str
    experiment_id: str | None = None
    run_id: str | None = None
    num_operations: int = 0
    """Lines of the journal."""
    missing_artifacts: tuple[int, ...] = ()
    """Lines among them whose files the server has not."""
    metrics_offset_bytes: int = 0
    knows_more: bool = False
    """Whether the server may have steps beyond the offset; then it is asked which, and those are not sent."""

    def restarted(self, tracking_uri: str) -> "SentState":
        """Return the state in which everything is still to be sent, to a server that has nothing of the run."""
        return SentState(run_key=self.run_key, tracking_uri=tracking_uri)


class Progress:
    """The stored state of a run folder; two threads change different parts of it."""

    def __init__(self, run_dir: Path, state: SentState) -> None:
        self._run_dir = run_dir
        self._lock = threading.Lock()
        self.state = state

    def replace(self, state: SentState) -> None:
        """Store another state."""
        with self._lock:
            self._store(state)

    def advance(
        self, *, num_operations: int | None = None, metrics_offset_bytes: int | None = None, artifact: int | None = None
    ) -> None:
        """Store that more was sent.

        Args:
            num_operations: Lines of the journal, if there are more.
            metrics_offset_bytes: Bytes of the metrics file.
            artifact: Number of a line whose files are pending from now on.
        """
        update: dict[str, object] = {}
        with self._lock:
            if num_operations is not None:
                update["num_operations"] = max(num_operations, self.state.num_operations)
            if metrics_offset_bytes is not None:
                update["metrics_offset_bytes"] = metrics_offset_bytes
            if artifact is not None:
                update["missing_artifacts"] = tuple(sorted({*self.state.missing_artifacts, artifact}))
            self._store(self.state.model_copy(update=update))

    def remove_artifact(self, run_id: str, number: int) -> None:
        """Store that the files of a line are at a run; nothing if another run has taken its place."""
        with self._lock:
            if self.state.run_id == run_id:
                left = tuple(line for line in self.state.missing_artifacts if line != number)
                self._store(self.state.model_copy(update={"missing_artifacts": left}))

    def _store(self, state: SentState) -> None:
        if state != self.state:
            save_state(self._run_dir, state)
            self.state = state


class MetricPoint(NamedTuple):
    """One value of one metric."""

    key: str
    value: float
    step: int
    time_s: float


class Journal:
    """The operations file of a run folder: appended by the driver, read by the sender."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / JOURNAL_NAME
        self._reported: set[int] = set()
        """Numbers of the lines that are not operations; the sender reads every second."""

    def append(self, operation: AnyOperation) -> None:
        """Add an operation with a single write, so that readers never see half of it while this process lives."""
        append_line(self.path, without_credentials(operation.model_dump_json()))

    def read(self, start: int = 0) -> list[AnyOperation]:
        """Return the operations after the first `start` lines."""
        return [operation for _, operation in self.numbered(start)]

    def numbered(self, start: int = 0) -> Iterator[tuple[int, AnyOperation]]:
        """Yield `(line number, operation)` after the first `start` lines; a last one without its end is left for later.

        A line that is not an operation is reported once and skipped.
        """
        for number, line in enumerate(complete_lines(self.path)[start:], start + 1):
            try:
                yield number, parse_operation(line)
            except ValidationError as error:
                if number not in self._reported:
                    self._reported.add(number)
                    reason = error.errors(include_input=False, include_url=False)[0]["msg"]
                    logger.warning("%s, line %d: not an operation, skipped (%s)", self.path, number, reason)

    def repair(self) -> None:
        """Cut off a last line that a killed process left half written."""
        cut_unfinished_line(self.path)


def read_metric_lines(path: Path, offset_bytes: int) -> Iterator[tuple[int, list[MetricPoint]]]:
    """Yield `(offset after the line, its points)` for every complete line of a metrics file from an offset on.

    A line that is not a metrics entry is reported and has no points.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset_bytes)
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                points = _parse_metric_line(line)
            except (ValueError, KeyError, TypeError) as error:
                logger.error("%s, byte %d: not a metrics entry, skipped: %r", path, offset_bytes, error)
                points = []
            offset_bytes += len(line)
            yield offset_bytes, points


def _parse_metric_line(line: bytes) -> list[MetricPoint]:
    entry = json.loads(line)
    step, time_s = int(entry["step"]), float(entry["time_s"])
    return [MetricPoint(key, float(value), step, time_s) for key, value in entry["metrics"].items()]


def read_state(run_dir: Path) -> SentState | None:
    """Return the stored progress; None when the folder has none, and, with a warning, when it is unreadable."""
    path = run_dir / STATE_NAME
    if not path.is_file():
        return None
    try:
        return SentState.model_validate_json(path.read_bytes())
    except ValidationError as error:
        reason = error.errors(include_input=False, include_url=False)[0]["msg"]
        logger.warning("%s is unreadable (%s) and is ignored; a power loss may have damaged it", path, reason)
        return None


def load_state(run_dir: Path, tracking_uri: str) -> SentState:
    """Return the stored progress, or a fresh one if the folder has none or was sent to another server."""
    state = read_state(run_dir)
    if state is None:
        return SentState(run_key=uuid.uuid4().hex, tracking_uri=tracking_uri)
    return state if state.tracking_uri == tracking_uri else state.restarted(tracking_uri)


def save_state(run_dir: Path, state: SentState) -> None:
    """Store the progress; if the process dies while writing, the previous one stays."""
    replace_file(run_dir / STATE_NAME, state.model_dump_json(indent=2) + "\n")


def resolve_tracking_uri(configured: str | None, environment: Mapping[str, str], run_dir: Path) -> str:
    """Choose the tracking server of a run.

    The config's comes first, then MLFLOW_TRACKING_URI, then where the run was sent before, then SQLite next to the run
    folder. None of them depends on the current directory, and runs of one parent folder share a database. Of a run in
    object storage, which holds no database, it is in the current directory.
    """
    if configured or environment.get("MLFLOW_TRACKING_URI"):
        return configured or environment["MLFLOW_TRACKING_URI"]
    if (state := read_state(run_dir)) is not None:
        return state.tracking_uri
    parent = run_dir.resolve().parent if mirror_of(run_dir) is None else Path.cwd()
    return f"sqlite:///{parent / 'mlflow.db'}"


def dashboard_command(tracking_uri: str, state: SentState | None = None) -> str:
    """Return what opens the tracking server's pages: an address, or the command that serves a local database.

    Args:
        tracking_uri: The server.
        state: Names the run whose page is wanted; None for the first page.
    """
    shown = without_credentials(tracking_uri).rstrip("/")
    page = ""
    if state is not None and state.run_id is not None:
        page = f"/{run_link(state.experiment_id, state.run_id)}"
    if shown.startswith(("http://", "https://")):
        return shown + page
    command = f"mlflow ui --backend-store-uri {shlex.quote(shown)}"
    return f"{command}, then http://127.0.0.1:5000{page}" if page else command


def run_link(experiment_id: str | None, run_id: str) -> str:
    """Return the place of a run on MLflow's pages; without the last part a fresh browser shows chat traces instead."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


_SECTIONS = {
    "data/": "train_data/",
    "perf/": "train_perf/",
    "perf_mean/": "train_perf_mean/",
    "train/grad_norm": "train_optimizer/grad_norm",
    "train/learning_rate": "train_optimizer/learning_rate",
}


def shown_name(key: str) -> str:
    """Return the name of a metric on the server, whose pages sort charts by prefix: the loss is to come first."""
    for prefix, shown in _SECTIONS.items():
        if key.startswith(prefix):
            return shown + key.removeprefix(prefix)
    return key


def flatten_params(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the leaves of a config tree as `{"training.learning_rate": "0.001"}`."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten_params(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat
