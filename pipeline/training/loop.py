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

from pipeline.training.batches import PreparedStep
from pipeline.training.bookkeeping import book, step_metrics
from pipeline.training.gradients import accumulate_gradients
from pipeline.training.metrics import StepCounts
from pipeline.training.optim import learning_rate_factor, set_learning_rate
from pipeline.training.session import StepOutcome, TrainingSession
from pipeline.training.snapshot import save_checkpoint


class NonFiniteError(RuntimeError):
    """Loss or gradient became NaN or infinite; the weights of the step before are kept."""


class StopRequestedError(RuntimeError):
    """The process was asked to stop (SIGTERM); the step was finished and saved."""


def train(session: TrainingSession, steps: Iterator[PreparedStep]) -> dict[str, float]:
    """Run optimizer steps until the stream of prepared steps ends; returns the metrics of the last one.

    Raises:
        NonFiniteError: loss or gradient is not finite; names the step and its samples.
        RejectedBudgetError: too many samples could not be used.
        StopRequestedError: the process was asked to stop, after a checkpoint.
    """
    metrics: dict[str, float] = {}
    started = time.perf_counter()
    for prepared in steps:
        wait_s = time.perf_counter() - started
        outcome = run_step(session, prepared)
        book(session, prepared, outcome.counts)
        metrics = step_metrics(session, prepared.step, outcome, time.perf_counter() - started, wait_s)
        if session.log is not None:
            session.log.append(prepared.step, metrics)
        next_step = prepared.step + 1
        stop = session.workers.max([float(session.stop_requested())])[0] > 0
        is_last = next_step == session.plan.total_steps
        if is_last or stop or next_step % session.config.checkpoint.every_steps == 0:
            save_checkpoint(session, next_step)
        if stop and not is_last:
            raise StopRequestedError(f"stopped after step {prepared.step} as asked; the same command resumes the run")
        started = time.perf_counter()
    return metrics


def run_step(session: TrainingSession, prepared: PreparedStep) -> StepOutcome:
    """Compute one optimizer step: forward and backward of every micro-batch, one gradient sum, one update.

    A step without a single supervised token changes nothing.

    Raises:
        NonFiniteError: before anything is updated, on every rank alike.
    """
    counts = StepCounts(*session.workers.sum(dataclasses.astuple(prepared.counts)))
    session.optimizer.zero_grad(set_to_none=True)
    local_loss = accumulate_gradients(session, prepared, counts.targets)
    if session.config.training.sharding == "none":
        session.workers.sum_gradients(session.trained)
    grad_norm = _whole(nn.utils.clip_grad_norm_(session.trained, session.config.training.max_grad_norm)).item()
    loss = session.workers.sum([local_loss.item()])[0]
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        ids = session.plan.samples(prepared.step).tolist()
        raise NonFiniteError(
            f"step {prepared.step}: loss {loss}, gradient norm {grad_norm}; nothing was updated. Samples of the step: "
            f"{ids}. Lower training.learning_rate, or look at these samples"
        )
    factor = learning_rate_factor(prepared.step, session.plan.total_steps, session.config.training)
    learning_rate = set_learning_rate(session.optimizer, factor)
    if counts.targets:
        session.optimizer.step()
    return StepOutcome(loss, grad_norm, learning_rate, counts)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
