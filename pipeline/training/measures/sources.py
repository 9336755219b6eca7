"""What each source of a mix contributes to a step: samples, supervised tokens and loss, without a sync of its own.

n sources (0 without a mix), K targets of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.fusion.constants import IGNORE_INDEX
from pipeline.plan.sources import Sources
from pipeline.stream.rank_step import RankStep


class SourceNumbers(NamedTuple):
    """One source in one step, over all ranks."""

    trained: int
    """Samples."""
    rejected: int
    """Planned samples that could not be used."""
    targets: int
    """Supervised tokens."""
    loss: float
    """Cross-entropy summed over them."""


class SourceTally(NamedTuple):
    """What one rank's part of a step holds of each source."""

    of_sample: npt.NDArray[np.int64]
    """Source of each sample of the rank-step."""
    targets: npt.NDArray[np.int64]
    """Supervised tokens of each sample."""
    counts: tuple[float, ...]
    """`[3 n]`: samples trained by source, then samples rejected, then supervised tokens."""

    def of_targets(self, members: Sequence[int]) -> Tensor:
        """Return the source of each target of a micro-batch with these samples of the rank-step, int64 `[K]`."""
        chosen = list(members)
        return torch.from_numpy(np.repeat(self.of_sample[chosen], self.targets[chosen]))


def tally_sources(rank_step: RankStep, labels: Sequence[Tensor], sources: Sources) -> SourceTally:
    """Count a rank-step by source; `labels` holds those of each of its samples."""
    of_sample = sources.of(rank_step.sample_ids.numpy())
    targets = np.array([int((own[1:] != IGNORE_INDEX).sum()) for own in labels], dtype=np.int64)
    is_trained = rank_step.text_lengths.numpy() > 0
    num_sources = len(sources.names)
    counts = [
        np.bincount(of_sample, weights=weights, minlength=num_sources)[:num_sources]
        for weights in (is_trained, ~is_trained, targets)
    ]
    return SourceTally(of_sample, targets, tuple(np.concatenate(counts).tolist()))


def sum_by_source(target_losses: Tensor, target_sources: Tensor, num_sources: int) -> Tensor:
    """Sum the losses of targets by source, float32 `[n]`, on their device.

    A product with indicators, since adding by index is not deterministic on a GPU.
    """
    wanted = torch.arange(num_sources, device=target_sources.device)
    return target_losses @ (target_sources[:, None] == wanted).to(target_losses.dtype)


def describe_sources(sources: Sources, counts: Sequence[float], losses: Sequence[float]) -> dict[str, SourceNumbers]:
    """Name the sums over all ranks.

    Args:
        sources: the sources.
        counts: `[3 n]`, those of the ranks' tallies added up.
        losses: `[n]` cross-entropy summed.
    """
    trained, rejected, targets = np.array(counts, dtype=np.int64).reshape(3, len(sources.names)).tolist()
    numbers = map(SourceNumbers, trained, rejected, targets, losses)
    return dict(zip(sources.names, numbers, strict=True))
