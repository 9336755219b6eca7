"""What one rank holds while it trains, and the outcome of a step, shared by the parts of the loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from model.weights import LlavaModel
from pipeline.config import ExperimentConfig
from pipeline.plan.plan import Plan
from pipeline.training.checkpoint import CheckpointStore
from pipeline.training.distributed import Workers
from pipeline.training.metrics import Ledger, MetricsLog, StepCounts


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
