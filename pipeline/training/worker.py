"""One rank of a run: build the model, resume, train, save the result. Knows nothing of Ray.

Folder of a run: config.yaml, index/, metrics.jsonl, quarantine/, checkpoints/, and the result in projector/ or model/.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import transformers

from pipeline.checkpoint.ownership import check_own
from pipeline.checkpoint.resume import run_storage
from pipeline.checkpoint.state import restore
from pipeline.checkpoint.store import Checkpoint, CheckpointStore
from pipeline.checkpoint.verification import Position
from pipeline.config import ExperimentConfig
from pipeline.errors import TransientError
from pipeline.features.opening import check_tower
from pipeline.parallel.ranks import Workers
from pipeline.parallel.stop_signals import StopRequestedError
from pipeline.run_folder.lease import check_lease
from pipeline.run_folder.restarts import record_failure
from pipeline.stream.rank_step import BatchSource, RankStep
from pipeline.training.batches import prepare_ahead
from pipeline.training.loop import train
from pipeline.training.measures.bookkeeping import drop_replayed
from pipeline.training.measures.metrics import METRICS_FILE, Ledger, MetricsLog
from pipeline.training.measures.records import describe_sample, drop_replayed_records
from pipeline.training.measures.trend import LossTrend
from pipeline.training.notices import Notices
from pipeline.training.optim import build_optimizer
from pipeline.training.result import DTYPES, build_model, save_result
from pipeline.training.session import TrainingSession
from pipeline.training.sharding import shard_model
from pipeline.training.snapshot import Snapshots

_LAST_WRITE_S = 10.0

OpenStream = Callable[[int], Iterator[RankStep]]
"""Given the first step, yields this rank's steps to the end of the run."""


class WorkerResult(NamedTuple):
    """What a finished run leaves behind."""

    steps: int
    metrics: dict[str, float]
    """Metrics of the last step trained here; empty when there was nothing left to train."""
    output: str
    """Projector file, or folder of the full model or of adapters."""


def run_worker(
    config: ExperimentConfig,
    source: BatchSource,
    workers: Workers,
    open_stream: OpenStream,
    *,
    position: Position | None,
    attempt: int,
    notices: Notices,
) -> WorkerResult:
    """Train this rank's part of the run.

    Args:
        config: the run.
        source: its data and plan.
        workers: this rank among the others.
        open_stream: opens this rank's data.
        position: the checkpoint to continue from, the same on all ranks; None starts from nothing.
        attempt: number under which the launcher holds the run folder.
        notices: tells when to stop or to save at once.

    Raises:
        ConfigError: the checkpoint belongs to another plan.
        ValueError: model parts that do not fit together.
    """
    session = None
    try:
        session = _set_up(config, source, workers, position, attempt, notices)
        metrics = _train(session, source, open_stream)
        return WorkerResult(source.plan.total_steps, metrics, save_result(config, session.model, workers))
    except StopRequestedError:
        raise
    except Exception as error:
        step = session.current_step if session else (position.step if position else 0)
        with suppress(OSError):  # of a full disk, say; what ended the run is told in any case
            record_failure(Path(config.run_dir), attempt, workers.rank, step, error)
        raise


def _train(session: TrainingSession, source: BatchSource, open_stream: OpenStream) -> dict[str, float]:
    """Train what is left of the run; returns the metrics of the last step."""
    if session.current_step == session.plan.total_steps:
        return {}
    stream, device = open_stream(session.current_step), session.workers.device
    steps = prepare_ahead(stream, source.encoder.resolution, device, source.plan.sources)
    try:
        metrics = train(session, steps)
        if session.current_step != session.plan.total_steps:
            raise TransientError(
                f"rank {session.workers.rank}: the steps ended before step {session.current_step} of "
                f"{session.plan.total_steps}; start the run again, it resumes from its checkpoint"
            )
        return metrics
    finally:
        steps.close()
        session.snapshots.abandon(_LAST_WRITE_S)


def _set_up(
    config: ExperimentConfig,
    source: BatchSource,
    workers: Workers,
    position: Position | None,
    attempt: int,
    notices: Notices,
) -> TrainingSession:
    """Build the model, fill it from the checkpoint, and put together what the loop needs."""
    _use_threads(config, workers)
    transformers.utils.logging.disable_progress_bar()  # progress is the launcher's to show
    torch.manual_seed(config.seed)
    model = build_model(config, workers.device)
    if source.features is not None:
        check_tower(source.features, model.get_vision_tower())
    if config.training.sharding == "fsdp" and workers.world_size > 1:
        shard_model(model, workers, DTYPES[config.training.precision], cpu_offload=config.training.cpu_offload)
    optimizer = build_optimizer(model, config.training)
    run_dir = Path(config.run_dir)
    start_step, ledger, trend = position.step if position else 0, Ledger(), LossTrend()
    store = _open_store(config, workers, attempt, start_step)
    if position is not None:
        checkpoint = store.open(position)
        check_own(checkpoint, source, config)
        restore(model, optimizer, checkpoint)
        _restore_random_state(checkpoint, workers, config.seed)
        ledger, trend = Ledger(**checkpoint.state["ledger"]), LossTrend(**checkpoint.state["trend"])
    if workers.is_first:
        store.storage.sweep()  # only now: before, the folder may have turned out to be another run's
    drop_replayed(run_dir / "quarantine", start_step, workers)
    if workers.is_first:
        drop_replayed_records(run_dir, start_step)
    return TrainingSession(
        config=config,
        plan=source.plan,
        describe_sample=partial(describe_sample, source.index),
        workers=workers,
        model=model,
        optimizer=optimizer,
        snapshots=Snapshots(store, attempt, start_step),
        log=MetricsLog(run_dir / METRICS_FILE) if workers.is_first else None,
        ledger=ledger,
        trend=trend,
        attempt=attempt,
        quarantine_file=run_dir / "quarantine" / f"rank-{workers.rank:05d}.jsonl",
        notices=notices,
        current_step=start_step,
    )


def _open_store(config: ExperimentConfig, workers: Workers, attempt: int, start_step: int) -> CheckpointStore:
    storage, policy = run_storage(config), config.checkpoint
    may_commit = partial(check_lease, Path(config.run_dir), attempt)
    return CheckpointStore(storage, policy.keep_last, may_commit, policy.keep_best, start_step)


def _use_threads(config: ExperimentConfig, workers: Workers) -> None:
    """Pin the number of intra-op threads: it decides how sums are split, so equal runs need equal numbers."""
    threads = config.cluster.torch_threads or max(1, (os.cpu_count() or 1) // workers.ranks_here)
    torch.set_num_threads(threads)


def _restore_random_state(checkpoint: Checkpoint, workers: Workers, seed: int) -> None:
    """Continue this rank's generators; a rank that did not exist before gets a stream of its own."""
    saved = checkpoint.tensors("random")
    if f"cpu.{workers.rank}" not in saved:
        torch.manual_seed(seed + checkpoint.step * 1_000_003 + workers.rank)
        return
    torch.set_rng_state(saved[f"cpu.{workers.rank}"])
    if workers.device.type == "cuda" and f"cuda.{workers.rank}" in saved:
        torch.cuda.set_rng_state(saved[f"cuda.{workers.rank}"], workers.device)
