"""The course of the training loss: its smoothed value, and whether a step leaves the range of the steps before it.

Pure arithmetic on losses in step order; its state is part of a checkpoint, so a resumed run judges as an undisturbed
one. Robust bound: median + k * 1.4826 * median absolute deviation (Leys et al., J. Exp. Soc. Psychology 49, 2013).
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

_DECAY = 0.98
_WINDOW = 128  # steps
_MIN_STEPS = 20  # fewer say nothing about the spread
_MAD_TO_SIGMA = 1.4826  # of a normal distribution


@dataclass
class LossTrend:
    """Losses of the steps so far, condensed."""

    weighted_sum: float = 0.0
    weight: float = 0.0
    recent: list[float] = field(default_factory=list)
    """Losses of the newest steps, oldest first."""
    num_spikes: int = 0

    @property
    def smoothed_loss(self) -> float | None:
        """Exponential moving average without the bias of its start; None before the first step."""
        return self.weighted_sum / self.weight if self.weight else None

    def bound(self, num_deviations: float) -> float | None:
        """Return the loss above which a step is a spike; None while there are too few steps."""
        if len(self.recent) < _MIN_STEPS:
            return None
        median = statistics.median(self.recent)
        deviation = statistics.median(abs(loss - median) for loss in self.recent)
        # a flat stretch has no spread; rounding must not make spikes of it
        return median + num_deviations * max(_MAD_TO_SIGMA * deviation, 1e-3 * abs(median))

    def add(self, loss: float, *, is_spike: bool) -> None:
        """Book a step; a spike is counted, and kept out of the range that later steps are compared with."""
        self.weighted_sum = _DECAY * self.weighted_sum + (1.0 - _DECAY) * loss
        self.weight = _DECAY * self.weight + (1.0 - _DECAY)
        if is_spike:
            self.num_spikes += 1
        else:
            self.recent = [*self.recent[1 - _WINDOW :], loss]

    def to_json(self) -> dict[str, Any]:
        """Return the state as JSON-serialisable facts, the arguments of another `LossTrend`."""
        return {
            "weighted_sum": self.weighted_sum,
            "weight": self.weight,
            "recent": list(self.recent),
            "num_spikes": self.num_spikes,
        }
