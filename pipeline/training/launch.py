"""A run from config to result: index, plan, tracking, workers, artifacts; what `pretrain` and `finetune` call.

Starting the same config again continues the run in its folder. Under torchrun every rank calls `run_training`; rank 0
does the shared work.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from pipeline.config import ExperimentConfig, check_resumable, load_config
from pipeline.loader import BatchSource, iterate_locally
from pipeline.prepare import prepare_source
from pipeline.training.distributed import Workers, join_torchrun
from pipeline.training.progress import ProgressReporter
from pipeline.training.worker import WorkerResult, run_worker

logger = logging.getLogger(__name__)


class TrainingResult(NamedTuple):
    """What a finished run leaves behind."""

    run_dir: Path
    steps: int
    """Optimizer steps of the whole run."""
    metrics: dict[str, float]
    """Metrics of the last step; empty when the run had finished before."""
    output: Path
    """Projector file (pretrain) or model folder (finetune)."""
    mlflow_run_id: str | None


def run_training(config: ExperimentConfig, console: Console | None = None) -> TrainingResult:
    """Run a stage to its end, continuing whatever its run folder already holds.

    Raises:
        ConfigError: the config does not fit the run folder, the cluster or the data.
        pipeline.errors.DataError: a shard is defective and data.on_bad_shard is `fail`.
    """
    console = console or Console()
    if config.cluster.launcher == "ray":
        from pipeline.training import ray_launch  # the local launcher must work where Ray is not installed

        adopt_run_dir(config)
        ray_launch.connect(config)
        source = prepare_source(config, console=console, run_map=ray_launch.map_tasks)
        with _watched(config, source, console) as run_id:
            result = ray_launch.run_on_ray(config, source)
        return _training_result(config, result, run_id)
    workers = join_torchrun(config.cluster.use_gpu)
    return _run_locally(config, workers, console)


def adopt_run_dir(config: ExperimentConfig) -> None:
    """Create the run folder, or check that the run in it may continue with this config.

    Raises:
        ConfigError: a field that must not change on resume differs.
    """
    saved = Path(config.run_dir) / "config.yaml"
    if saved.is_file():
        check_resumable(load_config(saved), config)
    saved.parent.mkdir(parents=True, exist_ok=True)
    temporary = saved.with_suffix(".tmp")
    temporary.write_text(config.to_yaml(), encoding="utf-8")
    temporary.replace(saved)


def _run_locally(config: ExperimentConfig, workers: Workers, console: Console) -> TrainingResult:
    if workers.is_first:
        adopt_run_dir(config)
        source = prepare_source(config, console=console)
        workers.barrier()  # the others read the index that rank 0 has just built
    else:
        workers.barrier()
        source = prepare_source(config, console=Console(quiet=True))

    def train() -> WorkerResult:
        return run_worker(
            config,
            source,
            workers,
            lambda start_step: iterate_locally(
                source,
                start_step=start_step,
                rank=workers.rank,
                num_ranks=workers.world_size,
                num_workers=config.cluster.data_workers,
                prefetch_steps=config.cluster.prefetch_steps,
                pin=workers.device.type == "cuda",
            ),
        )

    if not workers.is_first:
        return _training_result(config, train(), None)
    with _watched(config, source, console) as run_id:
        result = train()
    return _training_result(config, result, run_id)


@contextmanager
def _watched(config: ExperimentConfig, source: BatchSource, console: Console) -> Iterator[str | None]:
    """Show progress and track the run while the body trains."""
    metrics_path = Path(config.run_dir) / "metrics.jsonl"
    progress = ProgressReporter(metrics_path, name=config.name, total_steps=source.plan.total_steps, console=console)
    if not config.tracking.enabled:
        with progress:
            yield None
        return
    from pipeline.training.tracked_run import track  # keeps MLflow optional for untracked runs

    with track(config, source, console) as run_id, progress:
        yield run_id


def _training_result(config: ExperimentConfig, result: WorkerResult, run_id: str | None) -> TrainingResult:
    return TrainingResult(Path(config.run_dir), result.steps, result.metrics, Path(result.output), run_id)
