"""What a cache of the frozen tower's features saves: whole pretraining runs with and without it, on the same images.

Measured times are listed with the estimate of `ray-llava plan` for that config. Page cache: the first run on the
cache and the first reading find none of the features in memory.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from rich.console import Console

from benchmarks.data.written_inputs import named_model, write_model, write_photographs
from benchmarks.ranks.rank_processes import Measure
from benchmarks.ranks.rank_runs import read_steps
from pipeline.assembly.encoder import build_encoder
from pipeline.assembly.skeleton import build_skeleton
from pipeline.config import (
    CheckpointConfig,
    ClusterConfig,
    DataConfig,
    ExperimentConfig,
    TrackingConfig,
    TrainingConfig,
)
from pipeline.features.filling import fill_cache
from pipeline.features.opening import with_cached_features
from pipeline.launch.prepare import index_run, prepare_source
from pipeline.launch.run import run_training
from pipeline.parallel.ranks import Workers
from pipeline.parallel.run_map import run_serially
from pipeline.stream.prepare import plan_run
from pipeline.stream.rank_step import iterate_locally
from pipeline.tools.estimate.devices import device_here
from pipeline.tools.estimate.feature_cache import READ_BYTES_PER_S, estimate_cache
from pipeline.tools.estimate.forecast import forecast
from pipeline.tools.estimate.work import measure_work
from pipeline.tools.inspect.sample_view import Inspected
from pipeline.training.measures.speed import WARMUP_STEPS

COMPUTED: Final = "computed"
CACHED: Final = "cached, read before"
_REPORTED: Final = (
    "step_time_s", "tokens_per_s", "samples_per_s", "mfu", "data_wait_fraction", "memory_peak_bytes"
)  # fmt: skip


class CacheCase(NamedTuple):
    """What is trained."""

    shape: str
    global_batch_size: int
    num_steps: int
    micro_batch_tokens: int
    data_workers: int


CACHE_CASES: Final = {
    "full": CacheCase("1.5b", 128, 8, 32768, 8),
    "tiny": CacheCase("tiny", 5, 4, 2048, 0),
}


def cache_measurements(case: CacheCase, folder: Path, *, use_gpu: bool) -> Iterator[tuple[str, Measure]]:
    """Yield what fills a cache, trains with and without it, and reads it without training, in this order.

    Returns:
        Names, and functions that run on one rank; with the reports of the runs `compare` says what was saved.
    """
    config = _config(case, folder, use_gpu=use_gpu)
    cached = _with_cache(config, "cached", folder)
    yield "inputs", partial(_write_inputs, case, folder)
    yield "filling", partial(_fill, cached)
    yield "estimate", partial(_estimate, config)
    yield COMPUTED, partial(_train, config)
    yield "cached, read for the first time", partial(_train, _with_cache(config, "first", folder))
    yield CACHED, partial(_train, _with_cache(config, "again", folder))
    for number in sorted({min(1, case.data_workers), case.data_workers}):
        yield f"reading by {number} processes", partial(_read, _with_workers(cached, number))


def compare(computed: Mapping[str, Any], cached: Mapping[str, Any]) -> dict[str, float]:
    """Return the share of the step that is saved, and the largest relative difference of losses."""
    pairs = zip(cached["losses"], computed["losses"], strict=True)
    return {
        "saved": 1 - cached["step_time_s"] / computed["step_time_s"],
        "loss_difference": max(abs(ours / theirs - 1) for ours, theirs in pairs),
    }


def _write_inputs(case: CacheCase, folder: Path, workers: Workers) -> dict[str, Any]:
    started = time.perf_counter()
    write_model(folder / "model", case.shape, torch.bfloat16, workers.device)
    write_photographs(folder / "shards", case.global_batch_size * case.num_steps)
    return {"time_s": time.perf_counter() - started}


def _config(case: CacheCase, folder: Path, *, use_gpu: bool) -> ExperimentConfig:
    """Return the config of the run without a cache."""
    return ExperimentConfig(
        name="computed",
        run_dir=str(folder / "computed"),
        stage="pretrain",
        data=DataConfig(shards=(str(folder / "shards" / "*.tar"),), template="plain", index_dir=str(folder / "index")),
        model=named_model(folder / "model"),
        training=TrainingConfig(
            global_batch_size=case.global_batch_size,
            micro_batch_tokens=case.micro_batch_tokens,
            learning_rate=1e-3,
            precision="bfloat16",
            compile=use_gpu,
        ),
        checkpoint=CheckpointConfig(every_steps=10_000),
        cluster=ClusterConfig(
            launcher="local", use_gpu=use_gpu, data_workers=case.data_workers, torch_threads=None if use_gpu else 1
        ),
        tracking=TrackingConfig(enabled=False),
    )


def _with_cache(config: ExperimentConfig, name: str, folder: Path) -> ExperimentConfig:
    data = config.data.model_copy(update={"feature_cache": str(folder / "features")})
    return config.model_copy(
        update={"name": name, "run_dir": str(folder / name.replace(", ", "-").replace(" ", "-")), "data": data}
    )


def _with_workers(config: ExperimentConfig, number: int) -> ExperimentConfig:
    return config.model_copy(update={"cluster": config.cluster.model_copy(update={"data_workers": number})})


def _fill(config: ExperimentConfig, _: Workers) -> dict[str, Any]:
    """Do what `ray-llava cache-features` does, and time it."""
    encoder, started = build_encoder(config.model, config.data), time.perf_counter()
    index = index_run(config, encoder, Console(quiet=True), run_serially).index
    index_s, started = time.perf_counter() - started, time.perf_counter()
    report = fill_cache(config.recipe, index, encoder, use_gpu=config.cluster.use_gpu)
    time_s = time.perf_counter() - started
    forget(Path(report.folder))
    return {
        "images": report.images,
        "bytes": report.num_bytes,
        "index_s": index_s,
        "time_s": time_s,
        "images_per_s": report.images / time_s,
    }


def _estimate(config: ExperimentConfig, workers: Workers) -> dict[str, Any]:
    """Return what `ray-llava plan` says of a cache for this config."""
    encoder, model = build_encoder(config.model, config.data), build_skeleton(config.recipe)
    data = index_run(config, encoder, Console(quiet=True), run_serially)
    plan = plan_run(config.data, config.training, config.seed, data, encoder)
    work = measure_work(Inspected(data.index, data.tokens, encoder), plan, model, config.recipe)
    device = device_here(use_gpu=workers.device.type == "cuda", num_ranks=1)
    step_time_s = forecast(config.recipe, model, plan, work, device, 1, use_gpu=config.cluster.use_gpu).step_time_s
    tower = model.get_vision_tower()
    assert tower is not None
    estimate = estimate_cache(
        work,
        is_cached=False,
        tile_bytes=tower.num_features * tower.hidden_size * 2,
        num_samples=plan.num_samples,
        epochs=plan.order.epochs_done(plan.total_steps),
        num_ranks=1,
        step_time_s=step_time_s,
    )
    return {**estimate._asdict(), "step_time_s": step_time_s, "assumed_read_bytes_per_s": READ_BYTES_PER_S}


def _train(config: ExperimentConfig, _: Workers) -> dict[str, Any]:
    """Train; returns medians over the steps after warm-up."""
    run_training(config, Console(quiet=True))
    steps = list(read_steps(Path(config.run_dir)).values())
    warm = steps[WARMUP_STEPS:]
    names = [name for name in _REPORTED if f"perf/{name}" in warm[0]]  # MFU is absent on CPUs
    return {
        **{name: statistics.median(step[f"perf/{name}"] for step in warm) for name in names},
        "step_times_s": [step["perf/step_time_s"] for step in steps],
        "losses": [step["train/loss"] for step in steps],
    }


def _read(config: ExperimentConfig, _: Workers) -> dict[str, Any]:
    """Take the steps of a run on the cache from the loader and train nothing; the features are not in memory before."""
    source = with_cached_features(config.recipe, prepare_source(config, console=Console(quiet=True)))
    assert source.features is not None
    forget(Path(source.features.folder))
    cluster = config.cluster
    steps = iterate_locally(
        source, start_step=0, rank=0, num_ranks=1, num_workers=cluster.data_workers,
        prefetch_steps=cluster.prefetch_steps, pin=cluster.use_gpu,
    )  # fmt: skip
    first = next(steps)  # starting the processes is not reading
    assert first.features is not None
    started, num_bytes = time.perf_counter(), 0
    for step in steps:
        num_bytes += 0 if step.features is None else step.features.nbytes
    time_s = time.perf_counter() - started
    return {"bytes": num_bytes, "time_s": time_s, "bytes_per_s": num_bytes / time_s}


def forget(folder: Path) -> None:
    """Drop what the page cache holds of a folder's files, as far as they are on disk."""
    for path in folder.iterdir():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
