"""How sure a figure is: bootstrap intervals, and a paired test between two models on the same questions.

Shapes: N units, K numbers per unit, R resamples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.evaluation.metrics.measured import Measured

_RESAMPLES = 1000
_LEVEL = 0.95
_FLIPS = 10_000
_CHUNK = 100
"""Resamples at a time, so that memory stays at a few megabytes."""


class Interval(NamedTuple):
    """Where the figure would be for other questions of the same kind, 95 of 100 times."""

    low: float
    high: float

    def overlaps(self, other: Interval) -> bool:
        """Whether both have values in common."""
        return self.low <= other.high and other.low <= self.high


class PairedTest(NamedTuple):
    """Two models on the same units."""

    difference: float
    """Mean of second minus first, per unit."""
    interval: Interval
    """Of the difference."""
    p_value: float
    """Share of random exchanges of the two models that differ at least as much."""


def bootstrap(measured: Measured, seed: int = 0) -> Interval:
    """Return the percentile interval of the metric over units drawn with replacement."""
    generator, (number, _) = np.random.default_rng(seed), measured.totals.shape
    figures = []
    for _ in range(0, _RESAMPLES, _CHUNK):
        counts = generator.multinomial(number, np.full(number, 1 / number), size=_CHUNK)
        figures.append(measured.combine(counts @ measured.totals)[""])
    return _percentiles(np.concatenate(figures))


def paired_test(first: Measured, second: Measured, seed: int = 0) -> PairedTest:
    """Compare the scores of two models, unit by unit: a bootstrap interval, and a test that exchanges them at random.

    Raises:
        ValueError: they were not measured on the same units.
    """
    if first.units != second.units:
        raise ValueError("the two models were asked different questions; evaluate both on the same samples")
    generator, differences = np.random.default_rng(seed), second.scores - first.scores
    number, found = len(differences), abs(differences.mean())
    means, num_larger = [], 0
    for _ in range(0, _FLIPS, _CHUNK):
        signs = generator.integers(0, 2, size=(_CHUNK, number)) * 2 - 1
        num_larger += int((abs((signs * differences).mean(axis=1)) >= found - 1e-12).sum())
    for _ in range(0, _RESAMPLES, _CHUNK):
        counts = generator.multinomial(number, np.full(number, 1 / number), size=_CHUNK)
        means.append(counts @ differences / number)
    interval = _percentiles(np.concatenate(means))
    return PairedTest(float(differences.mean()), interval, (num_larger + 1) / (_FLIPS + 1))


def _percentiles(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Interval:
    low, high = np.quantile(values, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(float(low), float(high))
