"""What one rank holds while it trains, and the outcome of a step, shared by the parts of the loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.hub.weights import LlavaModel
from pipeline.config import DataConfig, TrainingConfig
from pipeline.parallel.ranks import Workers
from pipeline.plan.plan import Plan
from pipeline.run_folder.metrics_log import MetricsLog
from pipeline.training.measures.best import BestSoFar
from pipeline.training.measures.metrics import Ledger, StepCounts
from pipeline.training.measures.sources import SourceNumbers
from pipeline.training.measures.trend import LossTrend
from pipeline.training.notices import Notices


@dataclass
class TrainingSession:
    """What one rank holds while it trains."""

    run_dir: Path
    training: TrainingConfig
    data: DataConfig
    plan: Plan
    describe_sample: Callable[[int], dict[str, Any]]
    """Names a sample id for people: its shard and key."""
    workers: Workers
    model: LlavaModel
    optimizer: torch.optim.Optimizer
    log: MetricsLog | None
    """Rank 0 only."""
    ledger: Ledger
    trend: LossTrend
    attempt: int
    """Number under which the launcher holds the run folder."""
    quarantine_file: Path
    """JSON lines of this rank's rejected samples."""
    notices: Notices
    best: BestSoFar = field(default_factory=BestSoFar)
    """Of the metric that decides which checkpoints are kept."""
    stop_after: int | None = None
    """Evaluations without a new best that end the run; None for none."""
    current_step: int = 0
    """The step being computed, or waited for."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to train: all steps are done, or evaluations have stopped getting better."""
        gave_up = self.stop_after is not None and self.best.num_since >= self.stop_after
        return gave_up or self.current_step == self.plan.total_steps

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
    by_source: dict[str, SourceNumbers]
    """Empty without a mix."""
    experts: tuple[float, ...] = ()
    """The balancing loss, then the tokens that went to each expert; empty without `training.expert_balance`."""
