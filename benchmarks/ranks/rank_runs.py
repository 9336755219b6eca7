"""Whole runs on ranks of this machine, those of `ray-llava` with `cluster.launcher=local`, and reading what they left.

They train a random model on the demo's generated data, with a checkpoint after every step.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.data.written_inputs import write_model
from benchmarks.ranks.rank_processes import run_ranks
from pipeline.checkpoint.manifest import CHECKPOINT_FOLDER
from pipeline.checkpoint.store import CheckpointStore
from pipeline.checkpoint.verification import Position
from pipeline.config import (
    CheckpointConfig,
    ClusterConfig,
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    TrackingConfig,
    TrainingConfig,
)
from pipeline.launch.run import run_training
from pipeline.parallel.ranks import Workers
from pipeline.tools.demo.shards import DemoSizes, write_demo_shards

NUM_STEPS: Final = 4
_FIRST_MOMENT: Final = "optimizer/exp_avg."
_BETA: Final = 0.9
_NUM_SAMPLES: Final = 64
_TIMEOUT_S: Final = 300.0

Stage = Literal["pretrain", "finetune"]
Precision = Literal["float32", "bfloat16"]


class RunSettings(NamedTuple):
    """What one run of the comparison is."""

    stage: Stage
    precision: Precision
    num_ranks: int
    sharding: Literal["none", "fsdp"] = "none"

    @property
    def label(self) -> str:
        """Name of the run and of its folder, and in reports."""
        kind = {"none": "-replicated", "fsdp": "-sharded"}[self.sharding]
        return f"{self.stage}-{self.precision}-on-{self.num_ranks}" + (kind if self.num_ranks > 1 else "")


class Inputs(NamedTuple):
    """What the runs have in common."""

    folder: Path
    """Where runs go."""
    model: ModelConfig
    shards: dict[str, list[str]]
    """Of each stage."""
    use_gpu: bool


def config_of(settings: RunSettings, inputs: Inputs) -> ExperimentConfig:
    """Return the config of a run; with bfloat16 it runs compiled where there is a GPU, as one would train."""
    return ExperimentConfig(
        name=settings.label,
        run_dir=str(inputs.folder / settings.label),
        stage=settings.stage,
        data=DataConfig(
            shards=tuple(inputs.shards[settings.stage]), template="plain" if settings.stage == "pretrain" else "v1"
        ),
        model=inputs.model,
        training=TrainingConfig(
            global_batch_size=16,
            max_steps=NUM_STEPS,
            micro_batch_tokens=4096,
            learning_rate=1e-3 if settings.stage == "pretrain" else 1e-4,
            lr_schedule="constant",
            warmup_ratio=0.0,
            precision=settings.precision,
            sharding=settings.sharding,
            compile=inputs.use_gpu and settings.precision == "bfloat16",
        ),
        checkpoint=CheckpointConfig(every_steps=1, keep_last=NUM_STEPS + 1, keep_best=0),
        cluster=ClusterConfig(
            launcher="local", use_gpu=inputs.use_gpu, data_workers=0, torch_threads=None if inputs.use_gpu else 1
        ),
        tracking=TrackingConfig(enabled=False),
    )


def train_ranks(config: ExperimentConfig, num_ranks: int) -> None:
    """Run a config on some ranks, from the newest checkpoint in its folder."""
    run_ranks(partial(_train, config), num_ranks, use_gpu=config.cluster.use_gpu, timeout_s=_TIMEOUT_S)


def _train(config: ExperimentConfig, _: Workers) -> None:
    run_training(config, Console(quiet=True))


def write_inputs(folder: Path, workers: Workers) -> dict[str, Any]:
    """Write model and data; returns the facts of `Inputs` as JSON."""
    use_gpu = workers.device.type == "cuda"
    model = write_model(folder / "model", "check" if use_gpu else "tiny", torch.float32, workers.device, few_words=True)
    shards = write_demo_shards(folder / "shards", DemoSizes(_NUM_SAMPLES, _NUM_SAMPLES, 1))
    return {"model": model.model_dump(mode="json"), "shards": shards}


def fork_run(config: ExperimentConfig, suffix: str, step: int) -> ExperimentConfig:
    """Copy a finished run as it was after `step` steps, 0 for none, without metrics; returns the copy's config."""
    source = Path(config.run_dir)
    target = source.with_name(source.name + suffix)
    late = [checkpoint_name(later) for later in range(step + 1, NUM_STEPS + 1)]
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*late, "metrics.jsonl", "model", "projector"))
    return config.model_copy(update={"run_dir": str(target), "name": target.name})


def checkpoint_name(step: int) -> str:
    """Return the folder of a checkpoint."""
    return f"step-{step:08d}"


def read_steps(run: Path) -> dict[int, dict[str, float]]:
    """Return the metrics of every step of a run."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {line["step"]: line["metrics"] for line in lines}


def read_checkpoint(run: Path, step: int) -> dict[str, Tensor]:
    """Return weights and optimizer state after `step` steps, whole, as `model/NAME` and `optimizer/MOMENT.NAME`."""
    store = CheckpointStore(run / CHECKPOINT_FOLDER, keep_last=NUM_STEPS)
    checkpoint = store.open(Position(checkpoint_name(step), step))
    return {
        f"{group}/{name}": tensor
        for group in ("model", "optimizer")
        for name, tensor in checkpoint.tensors(group).items()
    }


def first_gradients(run: Path) -> dict[str, Tensor]:
    """Return the clipped gradients of the first step, by parameter: AdamW's first moment is then a tenth of them."""
    moments = {name: tensor for name, tensor in read_checkpoint(run, 1).items() if name.startswith(_FIRST_MOMENT)}
    return {name.removeprefix(_FIRST_MOMENT): tensor.float() / (1 - _BETA) for name, tensor in moments.items()}
