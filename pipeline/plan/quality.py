"""How well a step is cut: what share of the ranks' time is useful tokens, and how unevenly ranks are loaded.

Where every micro-batch ends in a collective (FSDP), the ranks' k-th micro-batches take as long as the largest of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.plan.packing import RankBatches


class PackingQuality(NamedTuple):
    """Figures of one step, or of several steps together."""

    useful_tokens: int
    occupied_tokens: int
    """Ranks x the most tokens that any rank has, summed over the k-th micro-batches of all ranks."""
    imbalance: float
    """Tokens of the fullest rank over the mean of all ranks, minus 1; of several steps the largest."""

    @property
    def efficiency(self) -> float:
        """Useful over occupied tokens, 0..1; 1 without waiting and padding."""
        return self.useful_tokens / max(1, self.occupied_tokens)


def quality_of(ranks: Sequence[RankBatches], num_tokens: Sequence[int]) -> PackingQuality:
    """Judge one step.

    Args:
        ranks: what `pack_step` returned for `num_tokens`.
        num_tokens: fused length of each sample of the step, in tokens.
    """
    return quality_of_loads([[sum(num_tokens[idx] for idx in batch) for batch in batches] for batches in ranks])


def quality_of_loads(loads: Sequence[Sequence[int]]) -> PackingQuality:
    """Judge one step by the tokens in each rank's micro-batches."""
    totals = [sum(of_rank) for of_rank in loads]
    useful = sum(totals)
    occupied = len(loads) * sum(max(layer) for layer in zip(*loads, strict=True))
    return PackingQuality(useful, occupied, max(totals) * len(loads) / max(1, useful) - 1)


def pooled(steps: Sequence[PackingQuality]) -> PackingQuality:
    """Return the quality of several steps together."""
    return PackingQuality(
        sum(step.useful_tokens for step in steps),
        sum(step.occupied_tokens for step in steps),
        max(step.imbalance for step in steps),
    )
