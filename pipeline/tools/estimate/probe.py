"""A short measured probe: a few real optimizer steps of rank 0's share on this machine, nothing of them kept."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch

from pipeline.assembly.parts import build_model
from pipeline.config import Recipe
from pipeline.parallel.ranks import Workers, pick_device
from pipeline.stream.rank_step import BatchSource, build_rank_step
from pipeline.training.batches import prepare
from pipeline.training.loop import run_step
from pipeline.training.measures.memory import memory_peak_bytes
from pipeline.training.measures.metrics import Ledger
from pipeline.training.measures.trend import LossTrend
from pipeline.training.notices import SignalNotices
from pipeline.training.optim import build_optimizer
from pipeline.training.session import TrainingSession

_WARMUP_STEPS = 1


class Probe(NamedTuple):
    """What a few steps took."""

    step_time_s: float
    """Median, without reading data and without exchange between ranks."""
    data_time_s: float
    """Median time of one process to read, decode and tokenize the rank-step."""
    memory_peak_bytes: int


def measure_steps(
    recipe: Recipe, source: BatchSource, num_ranks: int, num_steps: int, *, use_gpu: bool, seed: int
) -> Probe:
    """Train the first steps of rank 0 among `num_ranks` in this process, one of them to warm up.

    Raises:
        ValueError: model parts are missing, or a GPU is asked for and none is visible.
        OSError: storage failed.
    """
    device = pick_device(use_gpu, local_rank=0)
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        session = _open_session(recipe, source, Workers(0, 1, device), Path(folder))
        step_times, data_times = [], []
        for step in range(min(_WARMUP_STEPS + num_steps, source.plan.total_steps)):
            started = time.perf_counter()
            rank_step = build_rank_step(source, source.plan.split(step, num_ranks)[0])
            data_times.append(time.perf_counter() - started)
            prepared = prepare(rank_step, source.encoder.resolution, device, source.plan.sources)
            started = time.perf_counter()
            run_step(session, prepared)  # ends with a copy of the loss, so the device has finished
            step_times.append(time.perf_counter() - started)
    counted = step_times[_WARMUP_STEPS:] or step_times
    return Probe(_median(counted), _median(data_times), memory_peak_bytes(device))


def _open_session(recipe: Recipe, source: BatchSource, workers: Workers, folder: Path) -> TrainingSession:
    model = build_model(recipe, workers.device)
    return TrainingSession(
        run_dir=folder,
        training=recipe.training.model_copy(update={"sharding": "none"}),  # one process has no shards
        data=recipe.data,
        plan=source.plan,
        describe_sample=lambda sample_id: {"sample_id": sample_id},
        workers=workers,
        model=model,
        optimizer=build_optimizer(model, recipe.training),
        log=None,
        ledger=Ledger(),
        trend=LossTrend(),
        attempt=0,
        quarantine_file=folder / "quarantine.jsonl",
        notices=SignalNotices(lambda: False),
    )


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
