"""Running a training on Ray: Ray Data streams the rank-steps, Ray Train runs and restarts the workers.

The position of a (re)started worker group is read from the same verified checkpoint by the data stream and by the
workers; Ray's own checkpoint bookkeeping is not used. This module imports torch only where it runs, like
`pipeline.stream.ray_stream`.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import ray
import ray.exceptions
import ray.train
from pyarrow import fs
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError

from pipeline.checkpoint.resume import find_position
from pipeline.config import CheckpointConfig, ClusterConfig, ExperimentConfig
from pipeline.launch.on_ray.cluster import live_nodes
from pipeline.launch.on_ray.final_failure import EndOnFinalFailure, FinalFailure, hand_back
from pipeline.launch.on_ray.notices import RayNotices, forward_stop_signals
from pipeline.launch.on_ray.start import RunStart, StreamBuilder, run_data
from pipeline.parallel.own_code import OwnCode, check_same_code, own_code
from pipeline.parallel.stop_signals import StopRequestedError
from pipeline.parallel.worker_log import mark_own_lines
from pipeline.run_folder.lease import next_attempt
from pipeline.run_folder.place import fetch, place_in, working_folder
from pipeline.run_folder.restarts import FAILURES_FILE, has_come_back
from pipeline.storage.locations import locate
from pipeline.stream.ray_stream import PlanIngest, iterate_stream

if TYPE_CHECKING:
    from pipeline.stream.rank_step import BatchSource, RankStep
    from pipeline.training.worker import WorkerResult

logger = logging.getLogger(__name__)

_GROUP_TIMEOUT_S = 600
_CONTROLLERS_IN_VAIN = 7  # with the tries of each and a minute for each try, half an hour without machines
_STARTS_PER_CONTROLLER = 4
_ELASTIC_START_TIMEOUT_S = 25  # Ray looks every 20 s which nodes are left; waiting longer for one that is gone is vain
_WORKER_GROUP_FAILURES = 1000
_CONTROLLER_LOST = (ray.exceptions.ActorDiedError, WorkerGroupStartupTimeoutError, WorkerGroupStartupFailedError)
_Result = TypeVar("_Result")


class ClusterCapacityError(RuntimeError):
    """The cluster has no room for the workers of the run; the message says what it has."""


def run_on_ray(config: ExperimentConfig, source: BatchSource, attempt: int) -> WorkerResult:
    """Train with Ray Train until the run is finished.

    Raises:
        ClusterCapacityError: the cluster had no room for the workers, again and again.
        ray.exceptions.ActorDiedError: the controller died again and again without a new checkpoint.
        ray.train.TrainingFailedError: Ray Train failed otherwise.
        CrashLoopError: the workers failed more often than cluster.max_failures without a new checkpoint.
        StopRequestedError: a stop signal came; a checkpoint was written.
        Exception: what a worker raised and another start would raise again.
    """
    with forward_stop_signals() as stop:
        return replace_controllers(config, attempt, lambda attempt: _fit(config, source, attempt, stop))


def replace_controllers(config: ExperimentConfig, attempt: int, fit: Callable[[int], _Result]) -> _Result:
    """Call `fit` with the attempt number, and again while its controller ends before the run does.

    Ray Train restarts workers, not their controller; and a controller adds up over its whole life how often workers
    could not be started, where only failures without training in between mean something. A new one starts from zero.

    Raises:
        ClusterCapacityError: the cluster had no room for the workers, again and again.
        Exception: what `fit` raised, when it was something else, or for the last time.
    """
    run_dir = working_folder(config.run_dir)
    in_vain, step, since = 0, _saved_step(run_dir, config.checkpoint), time.monotonic()
    while True:
        try:
            return fit(attempt)
        except (ray.exceptions.ActorDiedError, ray.train.ControllerError) as error:
            cause = error.controller_failure if isinstance(error, ray.train.ControllerError) else error
            if not isinstance(cause, _CONTROLLER_LOST):
                raise
            in_vain += 1
            if (saved := _saved_step(run_dir, config.checkpoint)) != step:
                in_vain, step, since = 0, saved, time.monotonic()
            if in_vain > _CONTROLLERS_IN_VAIN:
                if isinstance(cause, WorkerGroupStartupTimeoutError):
                    raise ClusterCapacityError(
                        _describe_capacity(config.cluster, step, time.monotonic() - since)
                    ) from error
                raise
            logger.warning("Ray Train's controller ended at step %d, another one takes over: %s", step, cause)
            attempt = next_attempt(run_dir)  # its workers end with it, but not at once


def _saved_step(run_dir: Path, checkpoint: CheckpointConfig) -> int:
    position = find_position(run_dir, checkpoint)
    return position.step if position else 0


def _describe_capacity(cluster: ClusterConfig, step: int, waited_s: float) -> str:
    nodes = "; ".join(
        f"{name} {free:g} of {cpus:g} CPUs free, {gpus:g} GPUs" for name, free, cpus, gpus in live_nodes()
    )
    return (
        f"the Ray cluster had no room for {cluster.min_workers} workers of {cluster.cpus_per_worker:g} CPUs"
        f"{' and a GPU' if cluster.use_gpu else ''} for {waited_s / 60:.0f} minutes; its nodes: {nodes or 'none'}. "
        f"Training is at step {step}. Add nodes, stop what else runs there, or lower cluster.num_workers or "
        "cluster.cpus_per_worker; the same command continues"
    )


def _ray_storage(run_dir: str) -> tuple[fs.FileSystem | None, str]:
    """Return where Ray Train keeps its own notes; the first is None for a folder."""
    place = place_in(run_dir, "ray")
    return locate(place, "run_dir") if "://" in place else (None, str(Path(place).resolve()))


def _fit(config: ExperimentConfig, source: BatchSource, attempt: int, stop: Any) -> WorkerResult:
    from ray.train.torch import TorchConfig

    from pipeline.launch.on_ray.elastic import ElasticTrainer  # torch
    from pipeline.parallel.ranks import backends
    from pipeline.training.worker import WorkerResult

    if config.cluster.min_workers < config.cluster.max_workers:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_ELASTIC_START_TIMEOUT_S))
    source_ref = ray.put(source)
    data = run_data(config.run_dir, source.plan.data_fingerprint, source_ref)
    filesystem, storage_path = _ray_storage(config.run_dir)
    start = RunStart(config, data, attempt, source.plan.total_steps)
    trainer = ElasticTrainer(
        _TrainFunction(config, source_ref, attempt, stop, own_code()),
        torch_config=TorchConfig(backend=backends(config.cluster.use_gpu), timeout_s=_GROUP_TIMEOUT_S),
        datasets={"train": start},
        dataset_config=PlanIngest(StreamBuilder(config, source_ref, source.plan.total_steps), start.record),
        scaling_config=ScalingConfig(
            num_workers=config.cluster.num_workers,
            elastic_resize_monitor_interval_s=config.cluster.resize_interval_s,
            use_gpu=config.cluster.use_gpu,
            resources_per_worker={
                "CPU": config.cluster.cpus_per_worker,
                **({"GPU": 1} if config.cluster.use_gpu else {}),
            },
        ),
        run_config=RunConfig(
            # A name of its own for each start: under a known name Ray would silently continue its own old state.
            name=f"{working_folder(config.run_dir).name}-{uuid.uuid4().hex[:8]}",
            storage_path=storage_path,
            storage_filesystem=filesystem,
            callbacks=[EndOnFinalFailure()],
            failure_config=FailureConfig(
                # restarts without progress are counted by `RunStart`; a long run may have any number of others
                max_failures=_WORKER_GROUP_FAILURES,
                controller_failure_limit=_STARTS_PER_CONTROLLER - 1,
            ),
        ),
    )
    controllers: list[Any] = []
    # Instead of Ray's own handler of Ctrl-C, which ends the process without a message, with code 0 or 1.
    trainer._register_sigint_handler = controllers.append
    try:
        result = trainer.fit()
    except ray.train.ControllerError as error:
        if isinstance(error.controller_failure, FinalFailure):
            raise error.controller_failure.error from None
        raise
    except KeyboardInterrupt:
        for controller in controllers:
            ray.kill(controller)  # its workers end with it
        raise
    if isinstance(result.return_value, Exception):
        raise result.return_value
    assert isinstance(result.return_value, WorkerResult)
    return result.return_value


@dataclass(frozen=True)
class _TrainFunction:
    """What Ray Train runs on every worker."""

    config: ExperimentConfig
    source: ray.ObjectRef[BatchSource]
    attempt: int
    stop: Any
    """Handle of the driver's `StopRequest`."""
    code: OwnCode
    """What the driver runs."""

    def __call__(self) -> WorkerResult | Exception:
        """Train; returns an error that all ranks have agreed on, raises the error of a single one."""
        mark_own_lines()
        import ray.train.torch as ray_torch

        from pipeline.launch.rank_job import rank_job
        from pipeline.parallel.ranks import Workers
        from pipeline.training.bookkeeping import RejectedBudgetError
        from pipeline.training.loop import NonFiniteError
        from pipeline.training.measures.idle import NothingLearnedError
        from pipeline.training.measures.metrics import LedgerError
        from pipeline.training.snapshot import CheckpointWriteError
        from pipeline.training.worker import run_worker

        context = ray.train.get_context()
        workers = Workers(
            context.get_world_rank(),
            context.get_world_size(),
            ray_torch.get_device(),
            num_local=context.get_local_world_size(),
        )
        source = ray.get(self.source)
        shard = ray.train.get_dataset_shard("train")
        if isinstance(shard.origin, Exception):
            return shard.origin

        has_begun = False

        def open_stream(start_step: int) -> Iterator[RankStep]:
            nonlocal has_begun
            has_begun = True
            return iterate_stream(
                shard,
                source,
                start_step=start_step,
                rank=workers.rank,
                num_ranks=workers.world_size,
                prefetch_steps=self.config.cluster.prefetch_steps,
            )

        try:
            check_same_code(own_code(), self.code, f"worker {workers.rank}")
            return run_worker(
                rank_job(self.config, self.attempt),
                source,
                workers,
                open_stream,
                position=shard.origin,
                notices=RayNotices(self.stop),
            )
        except (
            NonFiniteError, NothingLearnedError, RejectedBudgetError, LedgerError, CheckpointWriteError,
            StopRequestedError,
        ) as error:  # fmt: skip
            return error  # of all ranks alike: each may end its own work, such as its part of a checkpoint
        except Exception as error:
            fetch(self.config.run_dir, FAILURES_FILE)
            came_back = has_come_back(working_folder(self.config.run_dir), self.attempt, workers.rank)
            raise hand_back(error, has_begun=has_begun, came_back=came_back) from error
