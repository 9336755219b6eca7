"""How likely the reference answers are to the model: cross-entropy and perplexity per supervised token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.evaluation.metrics.measured import Floats, Measured, ratio, unit_of
from pipeline.evaluation.scores import Answer


def measure_loss(answers: Sequence[Answer]) -> Measured:
    """Return the cross-entropy per supervised token, nats."""
    return _measure(answers, lambda mean: mean)


def measure_perplexity(answers: Sequence[Answer]) -> Measured:
    """Return e to the cross-entropy per supervised token."""
    return _measure(answers, np.exp)


def _measure(answers: Sequence[Answer], figure: Callable[[Floats], Floats]) -> Measured:
    first = [answer for answer in answers if answer.num_targets]  # one answer of a sample carries the sample's loss
    totals = np.array([(answer.loss, answer.num_targets) for answer in first], np.float64).reshape(-1, 2)
    scores = -ratio(totals[:, 0], totals[:, 1])
    return Measured(
        tuple(map(unit_of, first)), totals, lambda sums: {"": figure(ratio(sums[..., 0], sums[..., 1]))}, scores
    )
