"""Our side: the step of the training loop itself, on random models and planned random samples, on one or more ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.step.measure import Timing, time_steps
from benchmarks.step.scenarios import OurSettings, Scenario
from benchmarks.step.shapes import build_model, resolution
from benchmarks.step.workloads import SampleSize, TextSize, build_rank_step
from pipeline.assembly.parts import set_up_stage
from pipeline.assembly.precision import load_dtype
from pipeline.config import ExperimentConfig
from pipeline.parallel.ranks import Workers
from pipeline.plan.plan import Plan
from pipeline.training.batches import prepare_ahead
from pipeline.training.loop import run_step
from pipeline.training.measures.metrics import Ledger
from pipeline.training.measures.trend import LossTrend
from pipeline.training.notices import SignalNotices
from pipeline.training.optim import build_optimizer
from pipeline.training.session import TrainingSession
from pipeline.training.sharding import shard_model

Inspect = Callable[[TrainingSession, Callable[[], float]], None]
"""Called on every rank after the measured steps, with the session and one more step to run, for profiling."""


def build_session(
    scenario: Scenario, settings: OurSettings, sizes: list[TextSize], device: torch.device, run_dir: Path
) -> TrainingSession:
    """Build what a training run of the scenario in one process holds, with random weights."""
    return open_session(scenario, scenario.config(settings, str(run_dir)), sizes, Workers(0, 1, device))


def open_session(
    scenario: Scenario, config: ExperimentConfig, sizes: list[TextSize], workers: Workers
) -> TrainingSession:
    """Build what one rank of a training run holds, with random weights that are the same on all ranks.

    Args:
        scenario: gives model and plan.
        config: says how it is trained, sharding included.
        sizes: the samples.
        workers: this rank among the others.
    """
    training, device, run_dir = config.training, workers.device, Path(config.run_dir)
    torch.manual_seed(0)
    model = set_up_stage(
        build_model(scenario.shape, device, load_dtype(config.recipe), config.model.attention), config.recipe, device
    )
    if training.sharding == "fsdp" and workers.world_size > 1:
        shard_model(model, workers, training)
    return TrainingSession(
        run_dir=run_dir,
        training=training,
        data=config.data,
        plan=scenario.plan(sizes, training.micro_batch_tokens),
        describe_sample=lambda sample_id: {"sample_id": sample_id},
        workers=workers,
        model=model,
        optimizer=build_optimizer(model, training),
        log=None,
        ledger=Ledger(),
        quarantine_file=run_dir / "quarantine.jsonl",
        trend=LossTrend(),
        attempt=0,
        notices=SignalNotices(lambda: False),
    )


def time_ours(
    scenario: Scenario,
    settings: OurSettings,
    device: torch.device,
    run_dir: Path,
    inspect: Inspect | None = None,
) -> Timing:
    """Time our step in one process; see `time_session`."""
    sizes = scenario.sizes()
    return time_session(scenario, build_session(scenario, settings, sizes, device, run_dir), sizes, inspect)


def time_session(
    scenario: Scenario, session: TrainingSession, sizes: list[TextSize], inspect: Inspect | None = None
) -> Timing:
    """Time our step. Samples are drawn before; copies to the device run ahead of the steps, as in training.

    Args:
        scenario: what is trained.
        session: this rank's; all ranks call this.
        sizes: the samples that the session was built with.
        inspect: runs one more step.

    Returns:
        The same on all ranks: times and memory of the slowest and the fullest one.
    """
    plan, workers = session.plan, session.workers
    ranks, total = (workers.rank, workers.world_size), plan.total_steps
    drawn = [build_rank_step(plan, step, sizes, scenario.shape, *ranks) for step in range(total)]
    prepared = prepare_ahead(iter([*drawn, drawn[-1]]), resolution(scenario.shape), workers.device)
    computed_tokens: list[int] = []

    def one_step() -> float:
        step = next(prepared)
        computed_tokens.append(sum(sum(batch.packed.seqlens) for batch in step.micro_batches))
        return run_step(session, step).loss

    times, losses, peak = time_steps([one_step] * total, scenario.num_warmup_steps, workers.device)
    counted = range(scenario.num_warmup_steps, total)
    timing = Timing(
        step_times_s=tuple(workers.max(times)),
        samples=tuple(samples_of(plan, step, sizes, scenario.features_per_image) for step in counted),
        computed_tokens=tuple(map(int, workers.sum([computed_tokens[step] for step in counted]))),
        losses=losses,
        memory_peak_bytes=None if peak is None else int(workers.max([peak])[0]),
        num_devices=workers.world_size,
    )
    if inspect is not None:
        inspect(session, one_step)
    prepared.close()  # ends its thread
    return timing


def samples_of(plan: Plan, step: int, sizes: list[TextSize], features_per_image: int) -> tuple[SampleSize, ...]:
    """Return the sizes of the samples of a step."""
    return tuple(sizes[sample_id].fused(features_per_image) for sample_id in plan.samples(step))
