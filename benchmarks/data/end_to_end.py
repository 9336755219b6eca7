"""Whole runs on Ray, data stream and training together: one that the model limits, one that the data limit.

The second is compared with its data stage alone: the same stream, consumed without training.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import ray
import torch
from rich.console import Console

from benchmarks.data.written_inputs import write_model, write_photographs
from pipeline.config import (
    CheckpointConfig,
    ClusterConfig,
    DataConfig,
    ExperimentConfig,
    TrackingConfig,
    TrainingConfig,
)
from pipeline.launch.on_ray.cluster import join_cluster
from pipeline.launch.prepare import prepare_source
from pipeline.launch.run import run_training
from pipeline.stream.marks import WorkMarks
from pipeline.stream.ray_stream import build_dataset, iterate_stream
from pipeline.training.measures.speed import WARMUP_STEPS, verdict

_NUM_SAMPLES: Final = 256


def measure_end_to_end(folder: Path) -> dict[str, Any]:
    """Run both in `folder` and return their rates, data-wait shares and verdicts."""
    shards = write_photographs(folder / "shards", _NUM_SAMPLES, num_pictures=8, width=1280, height=960, per_shard=64)
    console = Console(quiet=True)
    computing = _config(folder, "compute-bound", "384 x 6", shards, batch_size=16, num_steps=14)
    waiting = _config(folder, "data-bound", "tiny", shards, batch_size=32, num_steps=40)
    results: dict[str, Any] = {config.name: _train(config, console) for config in (computing, waiting)}
    alone = _stream_rate(waiting, console)
    results["data-bound"]["data stage alone, samples/s"] = alone
    results["data-bound"]["share of the data stage"] = results["data-bound"]["samples_per_s"] / alone
    return results


def _train(config: ExperimentConfig, console: Console) -> dict[str, Any]:
    metrics = run_training(config, console).metrics
    return {
        "samples_per_s": metrics["perf_mean/samples_per_s"],
        "data_wait_fraction": metrics["perf_mean/data_wait_fraction"],
        "verdict": verdict(metrics, config.cluster.data_workers),
    }


def _stream_rate(config: ExperimentConfig, console: Console) -> float:
    """Return samples per second of the stream alone, warm-up left out."""
    source = prepare_source(config, console=console)
    join_cluster(config.cluster)
    dataset = build_dataset(
        ray.put(source),
        start_step=0,
        end_step=source.plan.total_steps,
        num_ranks=1,
        data_workers=config.cluster.data_workers,
        refused={},
        marks=WorkMarks(Path(config.run_dir) / "working"),
    )
    steps = iterate_stream(
        dataset.iterator(), source, start_step=0, rank=0, num_ranks=1, prefetch_steps=config.cluster.prefetch_steps
    )
    started, samples = time.perf_counter(), 0
    for number, rank_step in enumerate(steps):
        if number < WARMUP_STEPS:
            started = time.perf_counter()
        else:
            samples += len(rank_step.sample_ids)
    return samples / (time.perf_counter() - started)


def _config(
    folder: Path, name: str, shape: str, shards: list[str], *, batch_size: int, num_steps: int
) -> ExperimentConfig:
    return ExperimentConfig(
        name=name,
        run_dir=str(folder / name),
        stage="finetune",
        data=DataConfig(shards=tuple(shards), template="plain", max_length=512),
        model=write_model(folder / "models" / shape.replace(" ", ""), shape, torch.float32, torch.device("cpu")),
        training=TrainingConfig(
            global_batch_size=batch_size,
            micro_batch_tokens=1024,
            learning_rate=1e-4,
            num_epochs=-(-batch_size * num_steps // _NUM_SAMPLES),
            max_steps=num_steps,
        ),
        checkpoint=CheckpointConfig(every_steps=10_000),
        cluster=ClusterConfig(data_workers=1, torch_threads=1, prefetch_steps=4),
        tracking=TrackingConfig(enabled=False),
    )
