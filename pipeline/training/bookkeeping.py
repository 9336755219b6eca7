"""After each step: the ledger of samples, the list of rejected ones, and the numbers that are logged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from model.llava.packed_decoder import computed_tokens
from pipeline.config import DataConfig
from pipeline.parallel.ranks import Workers
from pipeline.run_folder.files import append_line, read_entries, replace_file
from pipeline.run_folder.place import push, shown
from pipeline.stream.rank_step import Rejected
from pipeline.training.batches import PreparedStep
from pipeline.training.measures.memory import memory_peak_bytes
from pipeline.training.measures.metrics import Ledger
from pipeline.training.measures.speed import StepSpeed
from pipeline.training.session import StepOutcome, TrainingSession


class RejectedBudgetError(RuntimeError):
    """More samples were rejected while training than the config tolerates."""


def book(session: TrainingSession, prepared: PreparedStep, outcome: StepOutcome) -> None:
    """Enter the step into the ledger and write rejected samples down.

    Raises:
        RejectedBudgetError: there are too many of them.
    """
    reasons: dict[str, int] = {}
    if outcome.counts.rejected:
        for own in session.workers.gather(prepared.reasons):
            for reason, number in own.items():
                reasons[reason] = reasons.get(reason, 0) + number
        _write_rejected(session.quarantine_file, prepared.step, prepared.rejected)
    session.ledger.add(outcome.counts, reasons, outcome.by_source)
    try:
        check_budget(session.ledger, session.plan.num_samples, session.data)
    except RejectedBudgetError as error:
        where = shown(session.quarantine_file.parent)
        raise RejectedBudgetError(f"step {prepared.step}: {error}; each is listed in {where}") from None


def check_budget(ledger: Ledger, num_samples: int, limits: DataConfig) -> None:
    """Compare what was rejected so far with what may be; a sample that cannot be decoded is rejected in every epoch.

    Args:
        ledger: of the run.
        num_samples: usable samples of the data, one epoch.
        limits: how many of them may be rejected.

    Raises:
        RejectedBudgetError: there are too many.
    """
    epochs = -(-(ledger.trained + ledger.quarantined) // num_samples)
    allowed = limits.allowed_rejected(num_samples) * epochs
    if ledger.quarantined > allowed:
        raise RejectedBudgetError(
            f"{ledger.quarantined} samples were rejected while training ({ledger.reasons}), more than the {allowed} "
            f"that data.max_rejected_fraction allows in {epochs} {'epoch' if epochs == 1 else 'epochs'}"
        )


def step_speed(
    session: TrainingSession,
    prepared: PreparedStep,
    outcome: StepOutcome,
    step_time_s: float,
    wait_s: float,
    *,
    look_is_due: bool = False,
) -> tuple[StepSpeed, bool]:
    """Return what a step took, over all ranks, and whether any rank wants to look at the machines; a collective."""
    computed = [float(computed_tokens(session.model, batch.packed)) for batch in prepared.micro_batches]
    longest_wait_s, due, *fullest = session.workers.max([wait_s, float(look_is_due), *computed])
    speed = StepSpeed(outcome.counts, sum(fullest) * session.workers.world_size, step_time_s, longest_wait_s)
    return speed, due > 0


def step_metrics(
    session: TrainingSession, step: int, outcome: StepOutcome, rates: Mapping[str, float], step_time_s: float
) -> dict[str, float]:
    """Return what is logged of a step.

    Args:
        session: of this rank, after the step.
        step: its number.
        outcome: its result.
        rates: of the `SpeedMeter`, and times of checkpoints.
        step_time_s: wall time of the step, waiting for data included.
    """
    metrics = {
        "train/loss": outcome.loss,
        "train/grad_norm": outcome.grad_norm,
        "train/learning_rate": outcome.learning_rate,
        "train/supervised_tokens": outcome.counts.targets,
        "data/epoch": session.plan.order.epochs_done(step + 1),
        "data/samples_trained": float(session.ledger.trained),
        "data/samples_quarantined": float(session.ledger.quarantined),
        **rates,
        "perf/step_time_s": step_time_s,
        "perf/memory_peak_bytes": float(memory_peak_bytes(session.workers.device)),
    }
    if outcome.experts:
        balance, *loads = outcome.experts
        mean = sum(loads) / len(loads)
        metrics |= {
            "train/expert_balance_loss": balance,
            "train/expert_load_max": max(loads) / max(mean, 1.0),
            "train/expert_load_min": min(loads) / max(mean, 1.0),
            "train/experts_unused": float(sum(load == 0 for load in loads)),
        }
    if session.trend.num_spikes:
        metrics["train/loss_spikes"] = float(session.trend.num_spikes)
    for name, numbers in outcome.by_source.items():
        account = session.ledger.by_source[name]
        metrics[f"data/samples_trained/{name}"] = float(account["trained"])
        metrics[f"data/samples_quarantined/{name}"] = float(account["quarantined"])
        if numbers.targets:
            metrics[f"train/loss/{name}"] = numbers.loss / numbers.targets
    for reason, number in session.ledger.reasons.items():
        metrics[f"data/quarantined/{reason}"] = float(number)
    return metrics


def drop_replayed(folder: Path, start_step: int, workers: Workers) -> None:
    """Remove rejected samples of steps that are computed again: this rank's, and those of ranks that are no more."""
    for path in folder.glob("rank-*.jsonl"):
        rank = int(path.stem.removeprefix("rank-"))
        if rank == workers.rank or (workers.is_first and rank >= workers.world_size):
            entries = [entry for entry in read_entries(path, ("step",)) if entry["step"] < start_step]
            replace_file(path, "".join(json.dumps(entry) + "\n" for entry in entries))


def _write_rejected(path: Path, step: int, rejected: tuple[Rejected, ...]) -> None:
    for entry in rejected:
        append_line(path, json.dumps({"step": step, **entry._asdict()}))
    if rejected:
        push(path)  # before rank 0 commits a checkpoint that counts them
