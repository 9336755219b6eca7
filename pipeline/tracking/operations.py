"""What a journal line of a run folder may say: one thing to do to the tracked run. Knows nothing of MLflow."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from pipeline.tracking.credentials import without_credentials

DATA_TAG = "ray_llava.data"
"""Of a model: fingerprint of the data that it learned from."""
SOURCE_RUN_TAG = "ray_llava.source_run_id"
"""Of a model: the run whose model it was made from."""

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


class Operation(BaseModel):
    """One thing to do to the tracked run. Doing it twice leaves the run as doing it once."""

    # A diverged metric must survive the file: NaN, not null.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    time_s: float
    """When it happened, seconds since the epoch."""


class OpenRun(Operation):
    """A process started, or resumed, the run."""

    kind: Literal["open"] = "open"
    attempt: int
    """1 for the first start, then one more for every resumption."""
    experiment: str
    run_name: str
    params: dict[str, str]
    tags: dict[str, str]
    config_yaml: str


class SetTags(Operation):
    """Tags to add or replace."""

    kind: Literal["tags"] = "tags"
    tags: dict[str, str]


class LogMetrics(Operation):
    """Metrics from outside the training loop, such as an evaluation."""

    kind: Literal["metrics"] = "metrics"
    step: int
    metrics: dict[str, float]


class LogDataset(Operation):
    """The data that the run uses."""

    kind: Literal["dataset"] = "dataset"
    name: str
    digest: str
    shards: tuple[str, ...]
    num_samples: int
    context: str
    """What it is used for, such as `training` or `evaluation`."""


class LogArtifacts(Operation):
    """A file, or all files of a folder, to store with the run."""

    kind: Literal["artifacts"] = "artifacts"
    path: str
    """Relative to the run folder, which may be moved before it is sent, or absolute if outside it."""
    artifact_path: str | None
    """Folder inside the run's artifacts; None is their root."""


class FinishRun(Operation):
    """The end of an attempt."""

    kind: Literal["finish"] = "finish"
    status: RunStatus


class RegistryEntry(BaseModel):
    """A version in the model registry."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Of the registered model."""
    alias: str | None
    """Given to the newest version."""
    score: float | None
    """Lower is better; the alias `best` goes to the best version among those with the same data."""


class LogModel(Operation):
    """A model that the run has made: a checkpoint, or its result."""

    kind: Literal["model"] = "model"
    name: str
    """Unique in the run, such as `step-00000100` or `projector`; `runs:/RUN_ID/NAME` leads to its files."""
    model_type: Literal["checkpoint", "projector", "adapters", "model", "export"]
    step: int
    """Optimizer steps done."""
    path: str | None
    """Folder or file to upload, as in `LogArtifacts`; None if the files stay where they are."""
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    """Of the last step before it."""
    metrics_time_s: float | None
    """When they were measured, seconds since the epoch."""
    dataset: tuple[str, str] | None
    """Name and digest of the data that it learned from."""
    entry: RegistryEntry | None


class TagModel(Operation):
    """Tags of a model logged before."""

    kind: Literal["model_tags"] = "model_tags"
    name: str
    tags: dict[str, str]


class UseModel(Operation):
    """A model of another run that this run starts from."""

    kind: Literal["use_model"] = "use_model"
    experiment_id: str
    run_id: str
    name: str


AnyOperation = OpenRun | SetTags | LogMetrics | LogDataset | LogArtifacts | LogModel | TagModel | UseModel | FinishRun
HAS_FILES = (OpenRun, LogArtifacts, LogModel, TagModel, UseModel)
"""What is sent after metrics and status, which never wait for it."""
_PARSER: TypeAdapter[AnyOperation] = TypeAdapter(Annotated[AnyOperation, Field(discriminator="kind")])


def parse_operation(line: bytes) -> AnyOperation:
    """Return the operation in a line; journals of older versions hold credentials, which nothing here may pass on.

    Raises:
        pydantic.ValidationError: it is none.
    """
    text = without_credentials(line.decode(errors="surrogateescape"))
    return _PARSER.validate_json(text.encode(errors="surrogateescape"))
