"""One run on an MLflow server: find or create it, and apply journal operations to it. The only importer of mlflow.

Every call may raise any error of the server or its client; the caller retries.
"""

import getpass
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    Experiment,
    InputTag,
    LifecycleStage,
    Metric,
    Param,
    Run,
    RunTag,
    ViewType,
)
from mlflow.exceptions import MlflowException
from mlflow.store.artifact import http_artifact_repo
from mlflow.utils.mlflow_tags import (
    MLFLOW_DATASET_CONTEXT,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
    MLFLOW_USER,
)
from mlflow.utils.validation import (
    MAX_DATASET_DIGEST_SIZE,
    MAX_DATASET_NAME_SIZE,
    MAX_METRICS_PER_BATCH,
    MAX_PARAM_VAL_LENGTH,
    MAX_PARAMS_TAGS_PER_BATCH,
    MAX_TAG_VAL_LENGTH,
)

from pipeline.tracking.credentials import without_credentials
from pipeline.tracking.journal import MetricPoint, SentState, shown_name
from pipeline.tracking.operations import (
    AnyOperation,
    FinishRun,
    LogArtifacts,
    LogDataset,
    LogMetrics,
    LogModel,
    OpenRun,
    SetTags,
    TagModel,
    UseModel,
)

RUN_KEY_TAG = "ray_llava.run_key"
ATTEMPT_TAG = "ray_llava.attempt"
MAX_POINTS_PER_CALL = MAX_METRICS_PER_BATCH

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # opens as training, not as chat traces
_UPLOAD_TIMEOUT_S = 120.0
_SLOWEST_UPLOAD_BYTES_PER_S = 1e6
_MAX_SHARDS_NAMED = 100  # a dataset's source must stay below 64 KB


class MlflowRun:
    """A run on a server, addressed by id."""

    def __init__(self, tracking_uri: str, run_id: str) -> None:
        self._client = MlflowClient(tracking_uri=tracking_uri)
        self._run_id = run_id

    def apply(self, operation: AnyOperation) -> None:
        """Perform one journal operation, but for its files; repeating it changes nothing.

        Raises:
            MlflowException: the server refused, or did not answer.
        """
        match operation:
            case OpenRun():
                self._reopen(operation)
            case SetTags():
                self._set_tags(operation.tags)
            case LogMetrics(step=step, metrics=metrics, time_s=time_s):
                self.log_points([MetricPoint(key, value, step, time_s) for key, value in metrics.items()])
            case LogDataset():
                self._log_dataset(operation)
            case LogArtifacts() | LogModel() | TagModel() | UseModel():
                pass  # files go by `log_files`, models by `RunModels`
            case FinishRun():
                end_time_ms = int(operation.time_s * 1000)
                self._client.set_terminated(self._run_id, operation.status, end_time_ms)

    def log_points(self, points: Sequence[MetricPoint]) -> None:
        """Send at most MAX_POINTS_PER_CALL metric values with the times at which they were measured."""
        metrics = [Metric(shown_name(p.key), p.value, int(p.time_s * 1000), p.step) for p in points]
        self._client.log_batch(self._run_id, metrics=metrics)

    def log_text(self, text: str, name: str) -> None:
        """Upload a text file."""
        self._client.log_text(self._run_id, text, name)

    def log_files(self, path: Path, artifact_path: str | None) -> None:
        """Upload a file, or the content of a folder.

        Raises:
            FileNotFoundError: it is gone.
        """
        if path.is_dir():
            self._client.log_artifacts(self._run_id, str(path), artifact_path)
        elif path.is_file():
            self._client.log_artifact(self._run_id, str(path), artifact_path)
        else:
            raise FileNotFoundError(f"artifact {path}: no such file or folder")

    def steps_of(self, key: str) -> set[int]:
        """Return the steps of a metric that the server has."""
        return {metric.step for metric in self._client.get_metric_history(self._run_id, shown_name(key))}

    def _reopen(self, operation: OpenRun) -> None:
        self._client.update_run(self._run_id, status="RUNNING")
        self._set_tags(operation.tags | {ATTEMPT_TAG: str(operation.attempt)})
        if operation.attempt == 1:  # params cannot be changed later; other attempts differ at most in their YAML
            params = [Param(key, value[:MAX_PARAM_VAL_LENGTH]) for key, value in operation.params.items()]
            for start in range(0, len(params), MAX_PARAMS_TAGS_PER_BATCH):
                batch = params[start : start + MAX_PARAMS_TAGS_PER_BATCH]
                self._client.log_batch(self._run_id, params=batch)

    def _set_tags(self, tags: dict[str, str]) -> None:
        batch = [RunTag(key, value[:MAX_TAG_VAL_LENGTH]) for key, value in tags.items()]
        self._client.log_batch(self._run_id, tags=batch)

    def _log_dataset(self, operation: LogDataset) -> None:
        first = operation.shards[0] if operation.shards else ""
        source = {
            "uri": str(PurePosixPath(first).parent) if "://" not in first else first.rpartition("/")[0],
            "num_shards": len(operation.shards),
            "shards": operation.shards[:_MAX_SHARDS_NAMED],
        }
        dataset = Dataset(
            name=operation.name[:MAX_DATASET_NAME_SIZE],
            digest=operation.digest[:MAX_DATASET_DIGEST_SIZE],
            source_type=urlparse(first).scheme or "local",
            source=json.dumps(source),
            profile=json.dumps({"num_samples": operation.num_samples, "num_shards": len(operation.shards)}),
        )
        context = InputTag(MLFLOW_DATASET_CONTEXT, operation.context)
        self._client.log_inputs(self._run_id, datasets=[DatasetInput(dataset, tags=[context])])


def connect(state: SentState, opening: OpenRun) -> SentState:
    """Find the run on the server or create it there; returns the state with its ids.

    A run that somebody deleted is not revived: a new one takes its place, and everything is sent to it again.
    """
    client = MlflowClient(tracking_uri=state.tracking_uri)
    if state.run_id is not None and _is_active(client, state.run_id):
        return state
    experiment_id = _experiment_id(client, state.tracking_uri, opening.experiment)
    found = _find_run(client, experiment_id, state.run_key)
    run = found or client.create_run(
        experiment_id,
        start_time=int(opening.time_s * 1000),
        run_name=opening.run_name,
        tags={
            RUN_KEY_TAG: state.run_key,
            MLFLOW_USER: getpass.getuser(),
            MLFLOW_SOURCE_NAME: "ray-llava",
            MLFLOW_SOURCE_TYPE: "JOB",
        },
    )
    return state.restarted(state.tracking_uri).model_copy(
        update={"experiment_id": experiment_id, "run_id": run.info.run_id, "knows_more": found is not None}
    )


def is_refusal(error: Exception) -> bool:
    """Tell whether repeating the same call is pointless: the server understood it and said no."""
    if not isinstance(error, MlflowException):
        return False
    return error.error_code in {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS"}


def bound_client_waiting() -> None:
    """Shorten the client's patience in this process, unless the environment sets it; default is 7 times 120 s.

    The sender retries by itself, and a thread stuck in a request would delay the end of the program.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    current = http_artifact_repo.http_request  # type: ignore[attr-defined]  # what uploads through the server call
    if not isinstance(current, _Patient):
        http_artifact_repo.http_request = _Patient(current)  # type: ignore[attr-defined]
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # it prints one that opens another page


class _Patient:
    """MLflow's way to send a request, with a limit of time that fits the size of a file; it has none of its own."""

    def __init__(self, request: Callable[..., Any]) -> None:
        self._request = request

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Send a request."""
        file = options.get("data")
        if isinstance(file, BufferedReader):
            size_bytes = os.fstat(file.fileno()).st_size
            options.setdefault("timeout", _UPLOAD_TIMEOUT_S + size_bytes / _SLOWEST_UPLOAD_BYTES_PER_S)
        return self._request(*arguments, **options)


def quiet_client() -> None:
    """Silence what the client's connections say of every try in this process; our own message names the failure."""
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


@contextmanager
def failures_explained(tracking_uri: str) -> Iterator[None]:
    """Raise failures of the server inside the block as errors that say what to do.

    Raises:
        ConnectionError: it did not answer, or failed.
        ValueError: it will refuse the same again.
    """
    try:
        yield
    except MlflowException as error:
        reason, _, _ = str(error).strip().partition("\n")
        what = without_credentials(f"MLflow at {tracking_uri}: {reason}")
        if is_refusal(error):
            raise ValueError(f"{what}; correct tracking.uri or tracking.experiment, or pass --uri") from error
        raise ConnectionError(
            f"{what}; nothing is lost: once the server answers, run the same command again, or name another with --uri"
        ) from error


def _is_active(client: MlflowClient, run_id: str) -> bool:
    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def check_active(experiment: Experiment) -> None:
    """Make sure that an experiment takes runs.

    Raises:
        ValueError: it was deleted.
    """
    if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
        raise ValueError(
            f"experiment {experiment.name!r} was deleted and takes no runs: restore it (mlflow experiments restore "
            f"--experiment-id {experiment.experiment_id}), or set tracking.experiment to another name"
        )


def _find_run(client: MlflowClient, experiment_id: str, run_key: str) -> Run | None:
    found = client.search_runs(
        [experiment_id], f"tags.`{RUN_KEY_TAG}` = '{run_key}'", ViewType.ACTIVE_ONLY, max_results=1
    )
    return found[0] if found else None


def _experiment_id(client: MlflowClient, tracking_uri: str, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        check_active(experiment)
        return str(experiment.experiment_id)
    # Without a location, SQLite's artifacts would go to the directory that the process was started in.
    location = None
    if tracking_uri.startswith("sqlite:///"):
        database = Path(tracking_uri.removeprefix("sqlite:///")).resolve()
        location = (database.parent / "mlartifacts").as_uri()
    return str(client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS))
