"""A run from config to result: index, plan, tracking, workers, artifacts; what `pretrain` and `finetune` call.

Starting the same config again continues the run in its folder. Under torchrun every rank calls `run_training`; rank 0
does the shared work.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console

from pipeline.assembly.parts import find_projector
from pipeline.checkpoint.resume import find_position
from pipeline.config import ExperimentConfig, ModelConfig
from pipeline.features.opening import with_cached_features
from pipeline.index.rejected import record_rejected
from pipeline.launch.crash_search import RunData
from pipeline.launch.description import describe_run
from pipeline.launch.failure_watch import FailureWatch
from pipeline.launch.local_stream import iterate_despite_deaths
from pipeline.launch.preflight import check_config, check_continues, check_data, check_outputs
from pipeline.launch.prepare import prepare_run, prepare_source
from pipeline.launch.progress import ProgressReporter
from pipeline.launch.rank_job import rank_job
from pipeline.parallel.children import run_on_cores, survive_in_tasks
from pipeline.parallel.own_code import check_same_code, own_code
from pipeline.parallel.ranks import Workers, join_torchrun
from pipeline.parallel.stop_signals import StopRequestedError, stop_requests
from pipeline.run_folder.files import replace_file
from pipeline.run_folder.lease import hold_checkpoints, hold_run
from pipeline.run_folder.restarts import record_start
from pipeline.stream.marks import WorkMarks
from pipeline.stream.rank_step import BatchSource, RankStep, iterate_locally
from pipeline.training.measures.profiling import PROFILE_FOLDER
from pipeline.training.notices import SignalNotices
from pipeline.training.worker import WorkerResult, run_worker

if TYPE_CHECKING:
    from pipeline.tracking import RunTracker, TrackedRun

logger = logging.getLogger(__name__)

_SEND_TIMEOUT_S = 60.0
_STOP_SEND_TIMEOUT_S = 10.0  # of the 30 s that clouds and clusters give a process to end


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
    """Run a stage to its end, continuing from what its run folder holds.

    Raises:
        ConfigError: the config does not fit the run folder, the cluster or the data.
        RunHeldError: another process is running in the run folder.
        pipeline.errors.DataError: a shard is defective and data.on_bad_shard is `fail`.
    """
    console = console or Console()
    config = config.with_absolute_paths()
    check_outputs(config)
    if config.cluster.launcher == "local":
        return _run_locally(config, join_torchrun(config.cluster.use_gpu), console)
    from pipeline.launch import ray_cluster, ray_train
    from pipeline.parallel.ray_map import map_on_cluster  # the local launcher must work where Ray is not installed

    with hold_run(Path(config.run_dir)) as attempt, hold_checkpoints(config.checkpoint.folder):
        adopt_run_dir(config)
        encoder = check_config(config).encoder  # before Ray, which takes seconds to start
        ray_cluster.connect(config.cluster)
        run_map = survive_in_tasks(map_on_cluster)
        source, data = prepare_run(config, encoder, console=console, run_map=run_map)
        rejected = record_rejected(Path(config.run_dir), data.index, data.tokens)
        source = check_data(config, data, source)
        return _supervise(config, source, rejected, console, lambda: ray_train.run_on_ray(config, source, attempt))


def adopt_run_dir(config: ExperimentConfig) -> None:
    """Create the run folder, or check that the run in it may continue with this config.

    A run that has left nothing but its config, because something in that was wrong, may begin with another one.

    Raises:
        ConfigError: a field that must not change on resume differs.
    """
    check_continues(config)
    saved = Path(config.run_dir) / "config.yaml"
    saved.parent.mkdir(parents=True, exist_ok=True)
    replace_file(saved, config.to_yaml())


def _run_locally(config: ExperimentConfig, workers: Workers, console: Console) -> TrainingResult:
    own = own_code()
    for rank, found in enumerate(workers.gather(own)):
        check_same_code(found, own, f"rank {rank}")
    if not workers.is_first:
        workers.wait_patiently()  # rank 0 builds the index in the meantime
        source = with_cached_features(config.recipe, prepare_source(config, console=Console(quiet=True)))
        return _describe(Path(config.run_dir), _train_rank(config, source, workers, attempt=0), None)
    with hold_run(Path(config.run_dir)) as attempt, hold_checkpoints(config.checkpoint.folder):
        adopt_run_dir(config)
        source, data = prepare_run(config, check_config(config).encoder, console=console, run_map=run_on_cores)
        rejected = record_rejected(Path(config.run_dir), data.index, data.tokens)
        source = check_data(config, data, source)
        workers.wait_patiently()
        return _supervise(config, source, rejected, console, lambda: _train_rank(config, source, workers, attempt))


def _train_rank(config: ExperimentConfig, source: BatchSource, workers: Workers, attempt: int) -> WorkerResult:
    cluster = config.cluster

    marks = WorkMarks(Path(config.run_dir) / "working" / f"rank-{workers.rank:05d}")
    data = RunData(Path(config.run_dir), source.plan.data_fingerprint, lambda: source.index, marks)

    def open_once(start_step: int, refused: Mapping[int, str]) -> Iterator[RankStep]:
        return iterate_locally(
            dataclasses.replace(source, refused=refused, marks=marks),
            start_step=start_step,
            rank=workers.rank,
            num_ranks=workers.world_size,
            num_workers=cluster.data_workers,
            prefetch_steps=cluster.prefetch_steps,
            pin=workers.device.type == "cuda",
        )

    with stop_requests() as requested:

        def open_stream(start_step: int) -> Iterator[RankStep]:
            return iterate_despite_deaths(open_once, data, start_step, requested.is_set)

        position = workers.gather(find_position(config.run_dir, config.checkpoint) if workers.is_first else None)[0]
        if workers.is_first:
            step = position.step if position else 0
            record_start(Path(config.run_dir), attempt, step, cluster.max_failures, workers.world_size)
        notices = SignalNotices(requested.is_set)
        job = rank_job(config, attempt)
        return run_worker(job, source, workers, open_stream, position=position, notices=notices)


def _supervise(
    config: ExperimentConfig,
    source: BatchSource,
    rejected: Mapping[str, int],
    console: Console,
    train: Callable[[], WorkerResult],
) -> TrainingResult:
    """Run `train` with progress on the console and, unless switched off, tracking in MLflow."""
    progress = ProgressReporter(
        Path(config.run_dir) / "metrics.jsonl", name=config.name, total_steps=source.plan.total_steps, console=console
    )
    if not config.tracking.enabled:
        with progress, FailureWatch(Path(config.run_dir), partial(_tell_restart, None)):
            return _describe(Path(config.run_dir), train(), None)
    from pipeline.tracking import JOURNAL_NAME, open_run  # an untracked run needs no MLflow

    begun = (Path(config.run_dir) / JOURNAL_NAME).is_file()
    tracker = open_run(tracked_run(config), _lineage(config.model))
    tracker.log_dataset(
        name=f"{config.name}-shards",
        digest=source.index.fingerprint,
        shards=[shard.url for shard in source.index.shards],
        num_samples=source.plan.num_samples,
        context="training",
    )
    if rejected and not begun:  # once per run, however often it is started
        tracker.log_metrics({f"data/rejected/{reason}": number for reason, number in rejected.items()}, step=0)
    stopped = False
    try:
        with progress, FailureWatch(Path(config.run_dir), partial(_tell_restart, tracker)):
            result = train()
        _log_output(config, tracker, Path(result.output))
        tracker.finish("FINISHED")
    except BaseException as error:
        stopped = isinstance(error, StopRequestedError | KeyboardInterrupt)
        with suppress(OSError):  # of a full disk, say; what ended the run is told in any case
            tracker.finish("KILLED" if stopped else "FAILED")
        raise
    finally:
        num_pending = tracker.close(_STOP_SEND_TIMEOUT_S if stopped else _SEND_TIMEOUT_S)
        if num_pending:
            console.print(
                f"{config.name}: {num_pending} records have not reached MLflow at {tracker.tracking_uri}; they "
                f"are kept in the run folder{_name_files(tracker)}. `ray-llava mlflow-replay {config.run_dir}` sends "
                "them later"
            )
    return _describe(Path(config.run_dir), result, tracker.run_id)


def _name_files(tracker: RunTracker) -> str:
    files = tracker.pending_files()
    return f" (files not uploaded: {', '.join(files)})" if files else ""


def _tell_restart(tracker: RunTracker | None, number: int, cause: str) -> None:
    """Say that workers start again, and why."""
    logger.warning("the workers start again (restart %d): %s", number, cause)
    if tracker is not None:
        tracker.set_tags({"ray_llava.restarts": str(number), "ray_llava.last_restart": cause})


def tracked_run(config: ExperimentConfig) -> TrackedRun:
    """Return what the tracker of a run must know."""
    from pipeline.tracking import TrackedRun

    return TrackedRun(
        run_dir=Path(config.run_dir),
        name=config.name,
        stage=config.stage,
        tracking=config.tracking,
        checkpoint=config.checkpoint,
        record=config.to_record(),
        description=describe_run(config),
    )


def _lineage(parts: ModelConfig) -> dict[str, str]:
    from pipeline.tracking import projector_lineage

    projector = find_projector(parts.pretrain_mm_mlp_adapter)
    return projector_lineage(Path(projector)) if projector else {}


def _log_output(config: ExperimentConfig, tracker: RunTracker, output: Path) -> None:
    traces = Path(config.run_dir) / PROFILE_FOLDER
    if traces.is_dir():
        tracker.log_artifacts(traces, PROFILE_FOLDER)
    if config.stage == "pretrain":
        tracker.log_artifacts(output, "projector")
    elif config.tracking.log_model:
        tracker.log_artifacts(output, "model")


def _describe(run_dir: Path, result: WorkerResult, run_id: str | None) -> TrainingResult:
    return TrainingResult(run_dir, result.steps, result.metrics, Path(result.output), run_id)
