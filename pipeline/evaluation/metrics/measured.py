"""What a metric gives: numbers per unit that add up, and the figures that follow from any sum of them.

Figures of resamples and of categories are then sums of rows, so intervals need no second pass over the answers.

Shapes: N units (answers, or groups of answers that are scored together), K numbers per unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.scores import Answer

Floats = npt.NDArray[np.float64]
Direction = Literal["max", "min"]


class Unit(NamedTuple):
    """What is scored as one."""

    name: str
    """Key of the sample, turn or group; the same for every model."""
    category: str


class Measured(NamedTuple):
    """A metric over answers."""

    units: tuple[Unit, ...]
    totals: Floats
    """[N, K]; all figures depend on the sum of rows only."""
    combine: Callable[[Floats], Mapping[str, Floats]]
    """From sums [..., K] to figures [...]; the one named "" is the metric itself."""
    scores: Floats
    """[N]: of each unit on its own, larger is better; what a paired test compares."""

    def figures(self) -> dict[str, float]:
        """Return all figures over all units."""
        return {name: float(value) for name, value in self.combine(self.totals.sum(axis=0)).items()}

    def by_category(self) -> dict[str, tuple[int, float]]:
        """Return number of units and the metric per category, sorted by name."""
        found = {}
        for category in sorted({unit.category for unit in self.units}):
            chosen = np.array([unit.category == category for unit in self.units])
            found[category] = int(chosen.sum()), float(self.combine(self.totals[chosen].sum(axis=0))[""])
        return found


@dataclass(frozen=True)
class Metric:
    """A named way to score answers."""

    name: str
    explanation: str
    """One line for people."""
    measure: Callable[[Sequence[Answer]], Measured]
    """Raises ValueError when the samples lack what the metric needs."""
    direction: Direction = "max"
    """Whether larger values are better."""
    reads_answers: bool = True
    """False if the loss is enough and nothing has to be generated."""


def unit_of(answer: Answer) -> Unit:
    """Return the unit of an answer that is scored on its own."""
    return Unit(f"{answer.key}/{answer.turn}", answer.kind)


def mean_metric(name: str, explanation: str, score: Callable[[Answer], float], direction: Direction = "max") -> Metric:
    """Return the metric that is the mean of a score per answer."""

    def measure(answers: Sequence[Answer]) -> Measured:
        return mean_of([unit_of(answer) for answer in answers], [score(answer) for answer in answers])

    return Metric(name, explanation, measure, direction)


def mean_of(units: Sequence[Unit], scores: Sequence[float]) -> Measured:
    """Return the mean of scores, one per unit."""
    values = np.array(scores, np.float64)
    totals = np.stack([values, np.ones_like(values)], axis=1)
    return Measured(tuple(units), totals, lambda sums: {"": ratio(sums[..., 0], sums[..., 1])}, values)


def ratio(part: Floats, whole: Floats) -> Floats:
    """Divide; 0 where there is nothing to divide by."""
    return np.divide(part, whole, out=np.zeros_like(part, dtype=np.float64), where=whole != 0)
