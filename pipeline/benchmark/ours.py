"""Our side: the step of the training loop itself, on random models and planned random samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from pipeline.benchmark.measure import Timing, time_steps
from pipeline.benchmark.scenarios import OurSettings, Scenario
from pipeline.benchmark.shapes import build_model, resolution
from pipeline.benchmark.workloads import SampleSize, TextSize, build_rank_step
from pipeline.plan.plan import Plan
from pipeline.training.batches import prepare_ahead
from pipeline.training.checkpoint import CheckpointStore
from pipeline.training.distributed import Workers
from pipeline.training.loop import run_step
from pipeline.training.metrics import Ledger
from pipeline.training.notices import SignalNotices
from pipeline.training.optim import build_optimizer
from pipeline.training.session import TrainingSession
from pipeline.training.snapshot import Snapshots
from pipeline.training.stage import set_up_stage
from pipeline.training.trend import LossTrend


def build_session(
    scenario: Scenario, settings: OurSettings, sizes: list[TextSize], device: torch.device, run_dir: Path
) -> TrainingSession:
    """Build what a training run of the scenario holds, with random weights."""
    config = scenario.config(settings, str(run_dir))
    torch.manual_seed(0)
    in_float32 = scenario.stage == "finetune" and scenario.master_dtype == "float32"
    built = build_model(scenario.shape, device, torch.float32 if in_float32 else torch.bfloat16, settings.attention)
    model = set_up_stage(built, config, device)
    return TrainingSession(
        config=config,
        plan=scenario.plan(sizes, settings.micro_batch_tokens),
        describe_sample=lambda sample_id: {"sample_id": sample_id},
        workers=Workers(0, 1, device),
        model=model,
        optimizer=build_optimizer(model, config.training),
        snapshots=Snapshots(CheckpointStore(run_dir / "checkpoints", 1), attempt=0),
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
    inspect: Callable[[TrainingSession, Callable[[], float]], None] | None = None,
) -> Timing:
    """Time our step. Samples are drawn before; copies to the device run ahead of the steps, as in training.

    Args:
        scenario: what is trained.
        settings: how.
        device: where.
        run_dir: a folder that may be written to.
        inspect: called after the measured steps with the session and one more step to run, for profiling.
    """
    sizes = scenario.sizes()
    session = build_session(scenario, settings, sizes, device, run_dir)
    plan = session.plan
    drawn = [build_rank_step(plan, step, sizes, scenario.shape) for step in range(plan.total_steps)]
    prepared = prepare_ahead(iter([*drawn, drawn[-1]]), resolution(scenario.shape), device)
    computed_tokens: list[int] = []

    def one_step() -> float:
        step = next(prepared)
        computed_tokens.append(sum(sum(batch.packed.seqlens) for batch in step.micro_batches))
        return run_step(session, step).loss

    times, losses, peak = time_steps([one_step] * plan.total_steps, scenario.num_warmup_steps, device)
    counted = range(scenario.num_warmup_steps, plan.total_steps)
    timing = Timing(
        step_times_s=times,
        samples=tuple(samples_of(plan, step, sizes, scenario.features_per_image) for step in counted),
        computed_tokens=tuple(computed_tokens[step] for step in counted),
        losses=losses,
        memory_peak_bytes=peak,
    )
    if inspect is not None:
        inspect(session, one_step)
    prepared.close()  # type: ignore[attr-defined]  # a generator: ends its thread
    return timing


def samples_of(plan: Plan, step: int, sizes: list[TextSize], features_per_image: int) -> tuple[SampleSize, ...]:
    """Return the sizes of the samples of a step."""
    return tuple(sizes[sample_id].fused(features_per_image) for sample_id in plan.samples(step))
