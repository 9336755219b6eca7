"""Config sections `checkpoint`, `cluster` and `tracking`: where a run executes and what it leaves behind."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config.section import Fixed, Free, Section
from pipeline.storage.urls import parse_object_url


class CheckpointConfig(Section):
    """When progress is saved, and how much of it is kept."""

    every_steps: Annotated[int, Free, Field(ge=1)] = 100
    """Optimizer steps between checkpoints; the last step is always saved."""
    keep_last: Annotated[int, Free, Field(ge=1)] = 2
    """Newest checkpoints kept; the one before the newest is what a damaged newest one falls back to."""
    keep_best: Annotated[int, Free, Field(ge=0)] = 1
    """Best checkpoints kept besides: by `keep_best_metric`."""
    keep_best_metric: Annotated[str | None, Free] = None
    """A figure of the evaluation, such as eval/exact_match; null: held-out loss if there is one, or training loss."""
    keep_best_mode: Annotated[Literal["max", "min"] | None, Free] = None
    """Whether larger or smaller values of `keep_best_metric` are better; null takes the metric's own direction."""
    layout: Annotated[Literal["sharded", "whole"], Free] = "sharded"
    """With `training.sharding: fsdp`: every rank writes its own shards, or rank 0 gathers and writes all."""
    folder: Annotated[str | None, Fixed] = None
    """Where checkpoints are stored: a shared folder or an s3:// or gs:// prefix of this run; null: the run folder."""

    @field_validator("folder")
    @classmethod
    def _check_folder(cls, value: str | None) -> str | None:
        if value is not None and "://" in value and not value.startswith(("s3://", "gs://")):
            raise ValueError(f"{value}: expected a folder, or a URL that begins with s3:// or gs://")
        if value is not None and "://" in value and not parse_object_url(value, "checkpoint.folder").key.strip("/"):
            raise ValueError(f"{value}: expected a prefix below the bucket, such as s3://bucket/runs/NAME")
        return value


class ClusterConfig(Section):
    """Where the run executes."""

    launcher: Annotated[Literal["ray", "local"], Free] = "ray"
    """`ray` uses Ray Data and Ray Train; `local` is this process, or one rank of it under torchrun, without Ray."""
    num_workers: Annotated[int | tuple[int, int], Free] = 1
    """Training workers (ranks) under Ray; `[least, most]` uses what the cluster has; torchrun sets its own number."""
    resize_interval_s: Annotated[float, Free, Field(gt=0)] = 60.0
    """With `[least, most]` workers: seconds between two looks whether the cluster has grown or shrunk."""
    use_gpu: Annotated[bool, Free] = False
    """One GPU per worker and NCCL; otherwise CPU and gloo."""
    cpus_per_worker: Annotated[float, Free, Field(gt=0)] = 1
    """CPUs reserved for each training worker."""
    data_workers: Annotated[int, Free, Field(ge=0)] = 2
    """Preprocessing processes, under Ray of one CPU each; 0 preprocesses in the training process (`local` only)."""
    prefetch_steps: Annotated[int, Free, Field(ge=1)] = 2
    """Optimizer steps of data prepared ahead of each worker."""
    torch_threads: Annotated[int | None, Free, Field(ge=1)] = None
    """Intra-op threads of a CPU worker; null divides the machine's cores by the workers on it."""
    max_failures: Annotated[int, Free, Field(ge=0)] = 3
    """Restarts of the workers without a new checkpoint before the run gives up; progress resets the count."""

    @field_validator("num_workers")
    @classmethod
    def _check_workers(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        least, most = value if isinstance(value, tuple) else (value, value)
        if not 1 <= least <= most:
            raise ValueError("expected a number of at least 1, or [least, most] with 1 <= least <= most")
        return value

    @model_validator(mode="after")
    def _check_data_workers(self) -> Self:
        if self.launcher == "ray" and self.data_workers == 0:
            raise ValueError("data_workers is 0, which only launcher=local can do; set at least 1")
        return self

    @property
    def min_workers(self) -> int:
        """Fewest training workers that the run accepts."""
        return self.num_workers[0] if isinstance(self.num_workers, tuple) else self.num_workers

    @property
    def max_workers(self) -> int:
        """Most training workers that the run uses."""
        return self.num_workers[1] if isinstance(self.num_workers, tuple) else self.num_workers


class TrackingConfig(Section):
    """MLflow; training itself never depends on it."""

    enabled: Annotated[bool, Free] = True
    """Write to MLflow at all; metrics.jsonl in the run folder is always written."""
    uri: Annotated[str | None, Free] = None
    """Tracking URI; null uses MLFLOW_TRACKING_URI, else a SQLite file."""
    experiment: Annotated[str, Free] = "ray-llava"
    """MLflow experiment, one per project."""
    log_model: Annotated[bool, Free] = True
    """Upload the finetuned model folder as an artifact; projectors are small and always uploaded."""
