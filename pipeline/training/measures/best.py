"""Which evaluation was the best so far, by the metric that decides which checkpoints are kept."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pipeline.config import BestMetric


@dataclass
class BestSoFar:
    """The best value of the deciding metric; part of every checkpoint."""

    value: float | None = None
    step: int = -1
    """Optimizer steps done when it was measured."""
    num_since: int = 0
    """Evaluations after it."""
    newest: float | None = None
    newest_step: int = -1

    def add(self, metric: BestMetric, value: float, step: int) -> bool:
        """Note a value; returns whether it is the best so far."""
        self.newest, self.newest_step = value, step
        is_best = self.value is None or metric.rank(value) < metric.rank(self.value)
        if is_best:
            self.value, self.step, self.num_since = value, step, 0
        else:
            self.num_since += 1
        return is_best

    def to_json(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)
