"""The experiment config: all sections of one run, and what holds between them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, field_validator, model_validator

from pipeline.config.data import DataConfig
from pipeline.config.evaluation import BestMetric, EvaluationConfig
from pipeline.config.lora import LoraConfig
from pipeline.config.model import ModelConfig
from pipeline.config.recipe import Recipe, Stage
from pipeline.config.running import CheckpointConfig, ClusterConfig, TrackingConfig
from pipeline.config.section import Fixed, Free, Section
from pipeline.config.training import TrainingConfig
from pipeline.storage.urls import check_run_dir


class ExperimentConfig(Section):
    """One training run."""

    name: Annotated[str, Free]
    """Run name shown in MLflow and in logs."""
    run_dir: Annotated[str, Free]
    """Folder or s3:// prefix of the run: config, index, checkpoints, metrics, results. The same one resumes the run."""
    stage: Annotated[Stage, Fixed]
    """`pretrain` trains the projector only; `finetune` the projector and the language model."""
    seed: Annotated[int, Fixed, Field(ge=0)] = 0
    """Seed of sample order and of weight initialisation."""
    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    lora: LoraConfig = LoraConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @field_validator("run_dir")
    @classmethod
    def _check_run_dir(cls, folder: str) -> str:
        return check_run_dir(folder)

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.training.micro_batch_tokens < self.data.max_length:
            raise ValueError(
                f"training.micro_batch_tokens ({self.training.micro_batch_tokens}) is smaller than data.max_length "
                f"({self.data.max_length}), so the longest sample would fit no micro-batch; raise the first or lower "
                "the second"
            )
        return self

    @model_validator(mode="after")
    def _check_what_learns(self) -> Self:
        lora = self.lora
        if lora.rank is not None and self.stage == "pretrain":
            raise ValueError("lora.rank is set, but stage pretrain trains the projector only; use it with finetune")
        if self.training.vision_tower_lr is not None and self.stage == "pretrain":
            raise ValueError("training.vision_tower_lr is set, but stage pretrain trains the projector only")
        if self.data.feature_cache is not None and self.training.vision_tower_lr is not None:
            raise ValueError(
                "data.feature_cache holds features of a frozen tower, but training.vision_tower_lr trains it; set "
                "one of them to null"
            )
        if lora.quantize_base is not None and lora.rank is None:
            raise ValueError(
                "lora.quantize_base freezes the language model in few bits; set lora.rank to train adapters on it"
            )
        if lora.quantize_base is not None and self.training.sharding == "fsdp":
            raise ValueError("lora.quantize_base cannot be sharded; set training.sharding=none")
        return self

    @model_validator(mode="after")
    def _check_linear_precision(self) -> Self:
        if self.training.linear_precision != "fp8":
            return self
        if not self.cluster.use_gpu:
            raise ValueError(
                "training.linear_precision=fp8 needs GPUs of the Hopper generation or newer, but cluster.use_gpu is "
                "false; set it to true, or training.linear_precision=null"
            )
        if self.lora.quantize_base is not None:
            raise ValueError(
                f"training.linear_precision=fp8 and lora.quantize_base={self.lora.quantize_base} both quantise the "
                "frozen language model; set one of them to null"
            )
        return self

    @model_validator(mode="after")
    def _check_best_metric(self) -> Self:
        best = self.best_metric
        if self.evaluation.held_out and self.data.held_out is None:
            raise ValueError("evaluation.held_out needs samples that are held out; set data.held_out, such as 0.01")
        if self.evaluation.stop_after is not None and best is None:
            raise ValueError("evaluation.stop_after needs a metric; set checkpoint.keep_best_metric")
        return self

    @property
    def best_metric(self) -> BestMetric | None:
        """What decides which checkpoints are the best; None for the smoothed training loss."""
        return self.evaluation.best_metric(self.checkpoint.keep_best_metric, self.checkpoint.keep_best_mode)

    @property
    def recipe(self) -> Recipe:
        """The sections that decide which model the stage trains."""
        return Recipe(self.stage, self.model, self.lora, self.training, self.data)

    def to_record(self) -> dict[str, Any]:
        """Return the resolved config as JSON values, as checkpoints keep it."""
        return self.model_dump(mode="json")

    def with_absolute_paths(self) -> Self:
        """Return the config with local paths made absolute, so that workers in other folders find the same files.

        A model name is a path if it exists here; otherwise it is left unchanged as a hub id.
        """

        def model_path(name: str | None) -> str | None:
            return str(Path(name).absolute()) if name is not None and Path(name).exists() else name

        def tower_paths(names: str | tuple[str, ...] | None) -> str | tuple[str | None, ...] | None:
            return tuple(model_path(name) for name in names) if isinstance(names, tuple) else model_path(names)

        def absolute(urls: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(url if "://" in url else str(Path(url).absolute()) for url in urls)

        # 1. The paths of each section.
        sources = {
            name: source.model_copy(update={"shards": absolute(source.shards)})
            for name, source in self.data.sources.items()
        }
        index_dir = self.data.index_dir and absolute((self.data.index_dir,))[0]
        feature_cache = self.data.feature_cache and str(Path(self.data.feature_cache).absolute())
        checkpoints = self.checkpoint.folder and absolute((self.checkpoint.folder,))[0]
        evaluation = self.evaluation
        sets = {name: one.model_copy(update={"shards": absolute(one.shards)}) for name, one in evaluation.sets.items()}
        parts = self.model
        # 2. The sections with them.
        return self.model_copy(
            update={
                "evaluation": evaluation.model_copy(update={"shards": absolute(evaluation.shards), "sets": sets}),
                "run_dir": absolute((self.run_dir,))[0],
                "checkpoint": self.checkpoint.model_copy(update={"folder": checkpoints}),
                "data": self.data.model_copy(
                    update={
                        "shards": absolute(self.data.shards),
                        "against": absolute(self.data.against),
                        "sources": sources,
                        "index_dir": index_dir,
                        "feature_cache": feature_cache,
                        "held_out": self._absolute_held_out(),
                    }
                ),
                "model": parts.model_copy(
                    update={
                        "language_model": model_path(parts.language_model),
                        "vision_tower": tower_paths(parts.vision_tower),
                        "pretrain_mm_mlp_adapter": model_path(parts.pretrain_mm_mlp_adapter),
                    }
                ),
            }
        )

    def _absolute_held_out(self) -> float | str | None:
        found = self.data.held_out
        return str(Path(found).absolute()) if isinstance(found, str) else found

    def to_yaml(self) -> str:
        """Return the resolved config as YAML, in field order."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=False)
