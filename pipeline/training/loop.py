"""The training loop: one optimizer step after the other, the same under Ray Train, torchrun and a single process.

Loss of a step = sum of cross-entropy over the supervised tokens of the whole global batch / their number, so that the
optimisation does not depend on how the batch was cut over ranks and micro-batches. Where batches come from, where
the process runs and who watches is decided elsewhere.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from model.weights import LlavaModel
from pipeline.config import ExperimentConfig
from pipeline.loader import Rejected
from pipeline.plan.plan import Plan
from pipeline.training.batches import PreparedStep
from pipeline.training.checkpoint import CheckpointStore
from pipeline.training.distributed import Workers
from pipeline.training.metrics import Ledger, MetricsLog, StepCounts, step_rates
from pipeline.training.optim import learning_rate_factor, set_learning_rate
from pipeline.training.state import collect


class NonFiniteError(RuntimeError):
    """Loss or gradient became NaN or infinite; the weights of the step before are kept."""


class RejectedBudgetError(RuntimeError):
    """More samples were rejected while training than the config tolerates."""


class StopRequestedError(RuntimeError):
    """The process was asked to stop (SIGTERM); the step was finished and saved."""


@dataclass
class TrainingSession:
    """What one rank holds while it trains."""

    config: ExperimentConfig
    plan: Plan
    workers: Workers
    model: LlavaModel
    optimizer: torch.optim.Optimizer
    store: CheckpointStore
    log: MetricsLog | None
    """Rank 0 only."""
    ledger: Ledger
    quarantine_file: Path
    """JSON lines of this rank's rejected samples."""
    stop_requested: Callable[[], bool]

    @property
    def trained(self) -> list[nn.Parameter]:
        """Parameters that learn, in optimizer order."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


@dataclass(frozen=True)
class StepOutcome:
    """Numbers of one optimizer step, over all ranks."""

    loss: float
    grad_norm: float
    learning_rate: float
    counts: StepCounts


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
        _book(session, prepared, outcome.counts)
        metrics = _metrics(session, prepared.step, outcome, time.perf_counter() - started, wait_s)
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
    local_loss = _accumulate_gradients(session, prepared, counts.targets)
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


def save_checkpoint(session: TrainingSession, next_step: int) -> None:
    """Save weights, optimizer, RNG and position as one transaction; all ranks take part, rank 0 writes.

    Raises:
        LedgerError: samples planned and samples accounted for differ.
    """
    session.ledger.check(session.plan.num_planned(next_step))
    tensors: dict[str, dict[str, Tensor]] = collect(session.model, session.optimizer, keep=session.workers.is_first)
    generators = session.workers.gather(random_state(session.workers.device))
    if session.workers.is_first:
        tensors["random"] = {
            f"{name}.{rank}": state for rank, own in enumerate(generators) for name, state in own.items()
        }
        session.store.save(next_step, tensors, _checkpoint_facts(session))
    session.workers.barrier()


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return this process's generator states."""
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


def _accumulate_gradients(session: TrainingSession, prepared: PreparedStep, num_targets: float) -> Tensor:
    """Forward and backward of every micro-batch; returns this rank's share of the loss, detached."""
    device = session.workers.device
    total = torch.zeros((), device=device)
    scale = 1.0 / max(num_targets, 1.0)
    with _autocast(session.config, device):
        features = session.model.encode_vision(prepared.pixels, session.config.training.vision_batch_size)
    for micro_batch in prepared.micro_batches:
        images = features[micro_batch.first_image : micro_batch.end_image].flatten(0, 1)
        with _autocast(session.config, device):
            loss = session.model.packed_loss(micro_batch.packed, images) * scale
        loss.backward()
        total += loss.detach()
    return total


def _autocast(config: ExperimentConfig, device: torch.device) -> AbstractContextManager[Any]:
    if config.training.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def _book(session: TrainingSession, prepared: PreparedStep, counts: StepCounts) -> None:
    """Enter the step into the ledger, write rejected samples down, and stop when there are too many."""
    reasons: dict[str, int] = {}
    if counts.rejected:
        for own in session.workers.gather(prepared.reasons):
            for reason, number in own.items():
                reasons[reason] = reasons.get(reason, 0) + number
        _write_rejected(session.quarantine_file, prepared.step, prepared.rejected)
    session.ledger.add(counts, reasons)
    allowed = session.config.data.allowed_rejected(session.plan.num_samples)
    if session.ledger.quarantined > allowed:
        raise RejectedBudgetError(
            f"step {prepared.step}: {session.ledger.quarantined} samples were rejected while training "
            f"({session.ledger.reasons}), more than the {allowed} that data.max_rejected_fraction allows; each is "
            f"listed in {session.quarantine_file.parent}"
        )


def _write_rejected(path: Path, step: int, rejected: tuple[Rejected, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for entry in rejected:
            file.write(json.dumps({"step": step, **entry._asdict()}) + "\n")


def _metrics(
    session: TrainingSession, step: int, outcome: StepOutcome, step_time_s: float, wait_s: float
) -> dict[str, float]:
    metrics = {
        "train/loss": outcome.loss,
        "train/grad_norm": outcome.grad_norm,
        "train/learning_rate": outcome.learning_rate,
        "train/supervised_tokens": outcome.counts.targets,
        "data/epoch": (step + 1) / session.plan.steps_per_epoch,
        "data/samples_trained": float(session.ledger.trained),
        "data/samples_quarantined": float(session.ledger.quarantined),
        **step_rates(outcome.counts, step_time_s, wait_s),
    }
    for reason, number in session.ledger.reasons.items():
        metrics[f"data/quarantined/{reason}"] = float(number)
    if session.workers.device.type == "cuda":
        metrics["perf/memory_peak_bytes"] = float(torch.cuda.max_memory_allocated(session.workers.device))
    return metrics


def _checkpoint_facts(session: TrainingSession) -> Mapping[str, Any]:
    return {
        "plan_fingerprint": session.plan.fingerprint,
        "ledger": session.ledger.to_json(),
        "world_size": session.workers.world_size,
        "config": session.config.model_dump(mode="json"),
    }


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
