"""A run from config to result; what `pretrain` and `finetune` call.

Starting the same config again continues the run in its folder. Under torchrun every rank calls `run_training`; the
first one does the shared work.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

from pipeline.checkpoint.resume import run_storage
from pipeline.config import ExperimentConfig
from pipeline.evaluation.sets import check_sets
from pipeline.features.opening import with_cached_features
from pipeline.index.dataset import SourceFacts
from pipeline.index.rejected import record_rejected
from pipeline.launch.adoption import adopt_run_dir
from pipeline.launch.device_check import check_capability
from pipeline.launch.local_stream import open_rank_stream
from pipeline.launch.preflight import check_config, check_data, check_outputs
from pipeline.launch.prepare import prepare_run, prepare_source
from pipeline.launch.rank_job import rank_job
from pipeline.launch.watch import RunWatch
from pipeline.parallel.children import run_on_cores, survive_in_tasks
from pipeline.parallel.own_code import check_same_code, own_code
from pipeline.parallel.ranks import Workers, join_torchrun
from pipeline.parallel.run_map import RunMap
from pipeline.run_folder.lease import hold_checkpoints, hold_run
from pipeline.run_folder.place import found_here, push, working_folder
from pipeline.samples.encode import SampleEncoder
from pipeline.stream.rank_step import BatchSource
from pipeline.training.worker import WorkerResult, run_worker


class TrainingResult(NamedTuple):
    """What a finished run leaves behind."""

    run_dir: Path
    """The folder of the run, or this process's copy of one in object storage."""
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
    check_outputs(config.run_dir, config.checkpoint, config.data)
    if config.cluster.launcher == "ray":
        return _run_on_ray(config, console)
    # 1. Meet the other ranks, which must run the same code.
    workers = _join_ranks(config.cluster.use_gpu)
    check_capability(config.training, partial(torch.cuda.get_device_capability, workers.device))
    with ExitStack() as run:
        # 2. The first rank holds the run folder and prepares the data; the others then find everything ready.
        attempt, watch = 0, None
        if workers.is_first:
            attempt = run.enter_context(hold_run(config.run_dir))
            run.enter_context(hold_checkpoints(config.checkpoint.folder))
            adopt_run_dir(config)
            encoder = check_config(config).encoder
            source, rejected, sources = _prepare(config, encoder, console, run_on_cores)
            workers.wait_patiently()
            watch = run.enter_context(RunWatch(config, source, rejected, sources, console))
        else:
            source = _wait_for_first_rank(config, workers)
        # 3. Train this rank's part, from where the run stands.
        job = rank_job(config, attempt)
        stream = run.enter_context(open_rank_stream(job, config.cluster, source, workers))
        result = run_worker(job, source, workers, stream.open, position=stream.position, notices=stream.notices)
        # 4. Hand the result on.
        if watch is not None:
            watch.finish(result.output)
    return _describe(working_folder(config.run_dir), result, watch)


def _run_on_ray(config: ExperimentConfig, console: Console) -> TrainingResult:
    """Run a stage with Ray Data and Ray Train; the same steps, with the ranks on the cluster."""
    from pipeline.launch.on_ray.cluster import (  # the local launcher must work where Ray is not installed
        connect,
        gpu_capability,
    )
    from pipeline.launch.on_ray.gauges import RunGauges
    from pipeline.launch.on_ray.train import run_on_ray
    from pipeline.launch.on_ray.worker_lines import worker_lines_apart
    from pipeline.parallel.ray_map import map_on_cluster

    with hold_run(config.run_dir) as attempt, hold_checkpoints(config.checkpoint.folder):
        adopt_run_dir(config)
        encoder = check_config(config).encoder  # before Ray, which takes seconds to start
        connect(config.cluster)
        check_capability(config.training, gpu_capability)
        source, rejected, sources = _prepare(config, encoder, console, survive_in_tasks(map_on_cluster))
        tags, storage = {"run": config.name, "stage": config.stage}, run_storage(config.run_dir, config.checkpoint)
        with (
            RunWatch(config, source, rejected, sources, console) as watch,
            RunGauges(tags, working_folder(config.run_dir), storage, source.plan.total_steps),
            worker_lines_apart(config.run_dir),
        ):
            result = run_on_ray(config, source, attempt)
            watch.finish(result.output)
    return _describe(working_folder(config.run_dir), result, watch)


def _join_ranks(use_gpu: bool) -> Workers:
    """Return torchrun's ranks, or this process alone.

    Raises:
        MixedCodeError: a rank runs other code than this one.
    """
    workers, own = join_torchrun(use_gpu), own_code()
    for rank, found in enumerate(workers.gather(own)):
        check_same_code(found, own, f"rank {rank}")
    return workers


def _prepare(
    config: ExperimentConfig, encoder: SampleEncoder, console: Console, run_map: RunMap
) -> tuple[BatchSource, dict[str, int], tuple[SourceFacts, ...]]:
    """Return what to train on, how many samples the index rejects for each reason (written down too), and sources."""
    source, data = prepare_run(config, encoder, console=console, run_map=run_map)
    run_dir = working_folder(config.run_dir)
    rejected = record_rejected(run_dir, data.index, data.tokens)
    check_sets(config.evaluation, run_dir, data.index, config.data.held_out, encoder)
    push(run_dir)  # before workers on other machines look for it
    return check_data(config.recipe, data, source), rejected, data.facts


def _wait_for_first_rank(config: ExperimentConfig, workers: Workers) -> BatchSource:
    """Return what to train on, once the first rank has indexed it."""
    workers.wait_patiently()
    return with_cached_features(config.recipe, prepare_source(config, console=Console(quiet=True)))


def _describe(run_dir: Path, result: WorkerResult, watch: RunWatch | None) -> TrainingResult:
    run_id = None if watch is None else watch.run_id
    return TrainingResult(run_dir, result.steps, result.metrics, found_here(result.output, run_dir), run_id)
