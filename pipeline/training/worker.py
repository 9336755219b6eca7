"""One rank of a run: build the model, resume, train, save the result. Knows nothing of Ray.

Folder of a run: config.yaml, index/, metrics.jsonl, quarantine/, checkpoints/, and the result in projector/ or model/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from pipeline.assembly.parts import build_model
from pipeline.checkpoint.ownership import check_own
from pipeline.checkpoint.resume import run_storage
from pipeline.checkpoint.state import restore
from pipeline.checkpoint.store import Checkpoint, CheckpointStore
from pipeline.checkpoint.verification import Position
from pipeline.config import BestMetric, CheckpointConfig, EvaluationConfig, Recipe
from pipeline.errors import TransientError
from pipeline.evaluation.sets import read_sets
from pipeline.features.opening import check_tower
from pipeline.parallel.cpus import usable_cpus
from pipeline.parallel.ranks import Workers
from pipeline.parallel.stop_signals import StopRequestedError
from pipeline.run_folder.lease import check_lease
from pipeline.run_folder.metrics_log import METRICS_FILE, MetricsLog
from pipeline.run_folder.place import follow, push, shown, write_alone
from pipeline.run_folder.restarts import record_failure
from pipeline.stream.rank_step import BatchSource, RankStep
from pipeline.training.batches import PreparedStep, prepare_ahead
from pipeline.training.bookkeeping import drop_replayed
from pipeline.training.evaluating import Evaluator
from pipeline.training.loop import train
from pipeline.training.measures.best import BestSoFar
from pipeline.training.measures.metrics import Ledger
from pipeline.training.measures.trend import LossTrend
from pipeline.training.notices import Notices
from pipeline.training.optim import build_optimizer
from pipeline.training.records import describe_sample, drop_replayed_records
from pipeline.training.result import save_result
from pipeline.training.session import TrainingSession
from pipeline.training.sharding import shard_model
from pipeline.training.snapshot import SavedRun, Snapshots

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


@dataclass(frozen=True)
class RankJob:
    """What a rank is to train, as its launcher hands it over; picklable."""

    run_dir: Path
    recipe: Recipe
    seed: int
    checkpoint: CheckpointConfig
    record: Mapping[str, Any]
    """The run's config, as `ExperimentConfig.to_record` returns it."""
    attempt: int
    """Number under which the launcher holds the run folder."""
    evaluation: EvaluationConfig
    best: BestMetric | None
    """What decides which checkpoints are the best; None for the smoothed training loss."""
    torch_threads: int | None
    """Intra-op threads of the rank; None shares the cores among the ranks of a machine."""


def run_worker(
    job: RankJob,
    source: BatchSource,
    workers: Workers,
    open_stream: OpenStream,
    *,
    position: Position | None,
    notices: Notices,
) -> WorkerResult:
    """Train this rank's part of the run.

    Args:
        job: the run.
        source: its data and plan.
        workers: this rank among the others.
        open_stream: opens this rank's data.
        position: the checkpoint to continue from, the same on all ranks; None starts from nothing.
        notices: tells when to stop or to save at once.

    Raises:
        ConfigError: the checkpoint belongs to another plan.
        ValueError: model parts that do not fit together.
    """
    session = None
    try:
        # 1. Build the model and optimizer, filled from the checkpoint.
        session, snapshots = _set_up(job, source, workers, position, notices)
        # 2. Train what is left of the run.
        with _prepared_steps(session, snapshots, source, open_stream) as steps:
            metrics = train(session, snapshots, steps, _evaluator(job, source))
            _check_finished(session)
        # 3. Leave the result in the run folder.
        output = shown(save_result(job.recipe, job.run_dir, session.model, workers))
        push(job.run_dir)
        workers.barrier()
        return WorkerResult(session.current_step, metrics, output)
    except StopRequestedError:
        with suppress(OSError):
            push(job.run_dir)
        raise
    except Exception as error:
        step = session.current_step if session else (position.step if position else 0)
        with suppress(OSError):  # of a full disk, say; what ended the run is told in any case
            record_failure(job.run_dir, job.attempt, workers.rank, step, error)
        raise


def _evaluator(job: RankJob, source: BatchSource) -> Evaluator | None:
    """Return what evaluates on the trainers, if anything does."""
    if not job.evaluation.is_on or job.evaluation.where != "trainers":
        return None
    sets = read_sets(job.evaluation, job.run_dir, source.index, job.recipe.data.held_out)
    return Evaluator(job.evaluation, sets, job.recipe.model, source.encoder, job.recipe.training.precision, job.best)


@contextmanager
def _prepared_steps(
    session: TrainingSession, snapshots: Snapshots, source: BatchSource, open_stream: OpenStream
) -> Iterator[Iterator[PreparedStep]]:
    """Yield the steps that are left, prepared ahead; none of them opens the stream when the run is complete."""
    if session.is_complete:
        yield iter(())
        return
    stream, device = open_stream(session.current_step), session.workers.device
    steps = prepare_ahead(stream, source.encoder.resolution, device, source.plan.sources)
    try:
        yield steps
    finally:
        steps.close()
        snapshots.abandon(_LAST_WRITE_S)


def _check_finished(session: TrainingSession) -> None:
    if not session.is_complete:
        raise TransientError(
            f"rank {session.workers.rank}: the steps ended before step {session.current_step} of "
            f"{session.plan.total_steps}; start the run again, it resumes from its checkpoint"
        )


def _set_up(
    job: RankJob, source: BatchSource, workers: Workers, position: Position | None, notices: Notices
) -> tuple[TrainingSession, Snapshots]:
    """Build the model, fill it from the checkpoint, and put together what the loop needs."""
    training, is_sharded = job.recipe.training, job.recipe.training.sharding == "fsdp"
    _use_threads(job.torch_threads, workers)
    transformers.utils.logging.disable_progress_bar()  # progress is the launcher's to show
    torch.manual_seed(job.seed)
    model = build_model(job.recipe, workers.device)
    if source.features is not None:
        check_tower(source.features, model.get_vision_tower())
    if is_sharded and workers.world_size > 1:
        shard_model(model, workers, training)
    optimizer = build_optimizer(model, training)
    start_step, ledger, trend, best = position.step if position else 0, Ledger(), LossTrend(), BestSoFar()
    store = _open_store(job, start_step)
    if position is not None:
        checkpoint = store.open(position)
        check_own(checkpoint, source.plan, job.record)
        restore(model, optimizer, checkpoint)
        _restore_random_state(checkpoint, workers, job.seed)
        ledger, trend = Ledger(**checkpoint.state["ledger"]), LossTrend(**checkpoint.state["trend"])
        best = BestSoFar(**checkpoint.state.get("best", {}))
    if workers.is_first:
        write_alone(job.run_dir, METRICS_FILE)
        follow(job.run_dir, "mlflow.json")  # which a checkpoint names
        store.storage.sweep()  # only now: until here, the folder could have been another run's
    drop_replayed(job.run_dir / "quarantine", start_step, workers)
    if workers.is_first:
        drop_replayed_records(job.run_dir, start_step)
    session = TrainingSession(
        run_dir=job.run_dir,
        training=training,
        data=job.recipe.data,
        plan=source.plan,
        describe_sample=partial(describe_sample, source.index),
        workers=workers,
        model=model,
        optimizer=optimizer,
        log=MetricsLog(job.run_dir / METRICS_FILE) if workers.is_first else None,
        ledger=ledger,
        trend=trend,
        attempt=job.attempt,
        quarantine_file=job.run_dir / "quarantine" / f"rank-{workers.rank:05d}.jsonl",
        notices=notices,
        best=best,
        stop_after=job.evaluation.stop_after,
        current_step=start_step,
    )
    saved = SavedRun(job.attempt, job.checkpoint, is_sharded, job.recipe.model, job.record, job.best)
    return session, Snapshots(store, saved, start_step)


def _open_store(job: RankJob, start_step: int) -> CheckpointStore:
    storage, policy = run_storage(job.run_dir, job.checkpoint), job.checkpoint

    def may_commit() -> None:
        push(job.run_dir)  # the steps that a checkpoint holds are not computed again, so their lines must be there
        check_lease(job.run_dir, job.attempt)

    metric = None if job.best is None else job.best.name
    return CheckpointStore(storage, policy.keep_last, may_commit, policy.keep_best, start_step, metric)


def _use_threads(asked_for: int | None, workers: Workers) -> None:
    """Pin the number of intra-op threads: it decides how sums are split, so equal runs need equal numbers."""
    threads = asked_for or max(1, usable_cpus() // workers.ranks_here)
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
