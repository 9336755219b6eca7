"""The training loop: one optimizer step after the other, the same under Ray Train, torchrun and a single process.

Loss of a step = sum of cross-entropy over the supervised tokens of the whole global batch / their number, so that the
optimisation does not depend on how the batch was cut over ranks and micro-batches. Where batches come from, where
the process runs and who watches is decided elsewhere.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from model.llava.fp8_linear import refresh_learning_layers
from pipeline.parallel.stop_signals import StopRequestedError
from pipeline.run_folder.fault_points import reached
from pipeline.training.batches import PreparedStep
from pipeline.training.bookkeeping import book, step_metrics, step_speed
from pipeline.training.evaluating import Evaluator
from pipeline.training.gradients import accumulate_gradients
from pipeline.training.measures.flops import FlopModel, peak_flops
from pipeline.training.measures.idle import IdleSteps
from pipeline.training.measures.machines import MachineWatch
from pipeline.training.measures.metrics import StepCounts
from pipeline.training.measures.profiling import StepProfiler
from pipeline.training.measures.sources import describe_sources
from pipeline.training.measures.speed import SpeedMeter
from pipeline.training.optim import learning_rate_factor, set_learning_rate
from pipeline.training.records import NONFINITE_FILE, SPIKE_FILE, record_step
from pipeline.training.session import StepOutcome, TrainingSession
from pipeline.training.snapshot import Snapshots


class NonFiniteError(RuntimeError):
    """Loss or gradient became NaN or infinite; the weights of the step before are in a checkpoint."""


def train(
    session: TrainingSession, snapshots: Snapshots, steps: Iterator[PreparedStep], evaluator: Evaluator | None = None
) -> dict[str, float]:
    """Run optimizer steps until the stream of prepared steps ends; returns the metrics of the last one.

    Evaluations end it earlier if the config asks for that.

    Raises:
        NonFiniteError: loss or gradient is not finite; names the step and its samples.
        RejectedBudgetError: too many samples could not be used.
        NothingLearnedError: gradients stay exactly zero.
        StopRequestedError: the process was asked to stop, after a checkpoint.
    """
    metrics: dict[str, float] = {}
    workers = session.workers
    flops = FlopModel.of(session.model)
    if session.data.feature_cache is not None:
        flops = flops.without_tower()
    meter = SpeedMeter(flops, peak_flops(workers.device), workers.world_size)
    profiler = StepProfiler(session.training.profile_steps, session.run_dir, is_first=workers.is_first)
    idle, machines = IdleSteps(session.current_step), MachineWatch(workers, session.run_dir)
    leaving = False
    started = time.perf_counter()
    for prepared in steps:
        wait_s = time.perf_counter() - started
        profiler.before(prepared.step)
        try:
            outcome = run_step(session, prepared)
        except NonFiniteError:
            snapshots.keep(session, prepared.step)
            raise
        profiler.after(prepared.step, is_last=prepared.step + 1 == session.plan.total_steps)
        book(session, prepared, outcome)
        observe_loss(session, prepared.step, outcome.loss)
        step_time_s = time.perf_counter() - started
        speed, look_is_due = step_speed(session, prepared, outcome, step_time_s, wait_s, look_is_due=machines.is_due())
        rates = meter.rates(speed) | snapshots.times()
        metrics = step_metrics(session, prepared.step, outcome, rates, step_time_s)
        if look_is_due:
            metrics |= machines.look()
        session.current_step = next_step = prepared.step + 1
        is_best = False
        if evaluator is not None:
            figures, is_best = evaluator.after(session, next_step, is_last=next_step == session.plan.total_steps)
            metrics |= figures
        if session.log is not None:
            session.log.append(prepared.step, metrics)
        reached("step.logged")
        stop, leaves_now = read_notices(session)
        is_last = session.is_complete
        idle.add(prepared.step, outcome.grad_norm if outcome.counts.targets else None, is_last=is_last)
        if is_last or stop or is_best or (leaves_now and not leaving) or snapshots.is_due(next_step):
            snapshots.save(session, next_step)
        if is_last or stop or leaves_now:
            snapshots.finish(session)
        leaving = leaving or leaves_now  # one extra checkpoint per notice: the machine may stay for minutes
        if stop and not is_last:
            raise StopRequestedError(f"stopped after step {prepared.step} as asked; the same command resumes the run")
        if is_last:
            break
        started = time.perf_counter()
    return metrics


def observe_loss(session: TrainingSession, step: int, loss: float) -> None:
    """Follow the loss; write the samples of a step down whose loss leaves the range of the steps before it."""
    bound = session.trend.bound(session.training.loss_spike_deviations)
    is_spike = bound is not None and loss > bound
    if is_spike:
        record_step(session, SPIKE_FILE, step, {"loss": loss, "bound": bound})
    session.trend.add(loss, is_spike=is_spike)


def read_notices(session: TrainingSession) -> tuple[bool, bool]:
    """Return whether the run was asked to stop, and whether one of its machines is leaving; the same on all ranks."""
    notices = session.notices
    stop, check_is_due = session.workers.max([float(notices.stop_requested()), float(notices.check_is_due())])
    return stop > 0, check_is_due > 0 and notices.machine_is_leaving()


def run_step(session: TrainingSession, prepared: PreparedStep) -> StepOutcome:
    """Compute one optimizer step: forward and backward of every micro-batch, one gradient sum, one update.

    A step without a single supervised token changes nothing.

    Raises:
        NonFiniteError: before anything is updated, on every rank alike; the samples are in nonfinite.jsonl.
    """
    own_counts = dataclasses.astuple(prepared.counts)
    summed = session.workers.sum([*own_counts, *prepared.tally.counts])
    counts, source_counts = StepCounts(*summed[: len(own_counts)]), summed[len(own_counts) :]
    session.optimizer.zero_grad(set_to_none=True)
    refresh_learning_layers(session.model, compiled=session.training.compile)
    local_loss = accumulate_gradients(session, prepared, counts.targets, counts.tokens)
    if session.training.sharding == "none":
        session.workers.sum_gradients(session.trained)
    grad_norm = _whole(nn.utils.clip_grad_norm_(session.trained, session.training.max_grad_norm)).item()
    loss, *further = session.workers.sum(local_loss.tolist())
    source_losses, experts = further[: len(local_loss.by_source)], further[len(local_loss.by_source) :]
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        ids = session.plan.samples(prepared.step).tolist()
        record_step(session, NONFINITE_FILE, prepared.step, {"loss": loss, "grad_norm": grad_norm})
        raise NonFiniteError(
            f"step {prepared.step}: loss {loss}, gradient norm {grad_norm}; nothing was updated. Samples of the step: "
            f"{ids}; {NONFINITE_FILE} in the run folder names their shards and keys. The weights before the step are "
            "in the newest checkpoint. Look at these samples, or lower training.learning_rate in another run_dir"
        )
    factor = learning_rate_factor(prepared.step, session.plan.total_steps, session.training)
    learning_rate = set_learning_rate(session.optimizer, factor)
    if counts.targets:
        session.optimizer.step()
    reached("step.updated")
    by_source = describe_sources(session.plan.sources, source_counts, source_losses)
    return StepOutcome(loss, grad_norm, learning_rate, counts, by_source, tuple(experts))


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
