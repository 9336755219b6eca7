"""How well a plan fills its micro-batches, measured on some of its steps before anything is read."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.plan.plan import Plan
from pipeline.plan.quality import pooled, quality_of_loads

_MAX_STEPS = 64
"""Steps looked at, evenly spread: a few thousand samples say the share to better than a percent."""


class PackingReport(NamedTuple):
    """What the packing of a plan makes of its token budget."""

    num_ranks: int
    num_steps: int
    """Steps it was measured on."""
    micro_batches_per_step: float
    """Of each rank, mean."""
    tokens_per_step: float
    """Fused tokens over all ranks, mean."""
    most_tokens: int
    """Fused tokens of the largest micro-batch."""
    fill: float
    """Tokens / (micro-batches x training.micro_batch_tokens)."""
    balance: float
    """Tokens of the mean rank / tokens of the busiest one, micro-batch by micro-batch: 1 means that no rank waits."""
    padding_avoided: float
    """Share of padding if each micro-batch were padded to its longest sample, as batches usually are; packed, none."""


def measure_packing(plan: Plan, num_ranks: int, max_steps: int = _MAX_STEPS) -> PackingReport:
    """Split evenly spread steps of a plan and see how full their micro-batches are.

    Args:
        plan: the run.
        num_ranks: number of workers W.
        max_steps: most steps to look at.
    """
    steps = np.unique(np.linspace(0, plan.total_steps - 1, min(plan.total_steps, max_steps)).astype(np.int64)).tolist()
    loads, padded = [], 0
    for step in steps:
        ranks = [[plan.num_tokens[list(batch)] for batch in rank.micro_batches] for rank in plan.split(step, num_ranks)]
        loads.append(np.array([[int(lengths.sum()) for lengths in rank] for rank in ranks]))
        padded += sum(int(lengths.max()) * len(lengths) for rank in ranks for lengths in rank if len(lengths))
    tokens = sum(int(load.sum()) for load in loads)
    return PackingReport(
        num_ranks=num_ranks,
        num_steps=len(steps),
        micro_batches_per_step=sum(load.shape[1] for load in loads) / len(steps),
        tokens_per_step=tokens / len(steps),
        most_tokens=max(int(load.max()) for load in loads),
        fill=tokens / (sum(load.size for load in loads) * plan.micro_batch_tokens),
        balance=pooled([quality_of_loads(load.tolist()) for load in loads]).efficiency,
        padding_avoided=1 - tokens / padded,
    )
