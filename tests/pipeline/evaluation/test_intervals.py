"""Intervals hold what they promise, and the paired test sees what two separate intervals do not."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation.intervals import Interval, bootstrap, paired_test
from pipeline.evaluation.metrics.measured import Measured, Unit, mean_of


def measured(scores: list[float]) -> Measured:
    return mean_of([Unit(str(idx), "all") for idx in range(len(scores))], scores)


def test_interval_of_a_share_is_that_of_the_binomial() -> None:
    interval = bootstrap(measured([1.0] * 60 + [0.0] * 40))
    # normal approximation: 0.6 +- 1.96 * sqrt(0.6 * 0.4 / 100)
    assert interval.low == pytest.approx(0.504, abs=0.02)
    assert interval.high == pytest.approx(0.696, abs=0.02)


def test_interval_holds_the_truth_about_95_of_100_times() -> None:
    generator = np.random.default_rng(3)
    draws = generator.random((200, 80)) < 0.3
    held = sum(low <= 0.3 <= high for low, high in (bootstrap(measured([*map(float, row)])) for row in draws))
    assert 180 <= held <= 198


def test_intervals_overlap() -> None:
    assert Interval(0, 0.5).overlaps(Interval(0.5, 1))
    assert not Interval(0, 0.49).overlaps(Interval(0.5, 1))
    assert Interval(0, 1).overlaps(Interval(0.2, 0.3))


def test_paired_test_finds_small_but_steady_differences() -> None:
    first = [float(idx % 2) for idx in range(200)]
    better = [1.0 if idx % 20 == 0 else score for idx, score in enumerate(first)]
    found = paired_test(measured(first), measured(better))
    assert found.difference == pytest.approx(0.05)
    assert found.interval.low > 0
    assert found.p_value < 0.01
    assert bootstrap(measured(first)).overlaps(bootstrap(measured(better)))


def test_paired_test_finds_no_difference_where_there_is_none() -> None:
    first, second = [0.0, 1.0] * 40, [1.0, 0.0] * 40
    found = paired_test(measured(first), measured(second))
    assert (found.difference, found.p_value) == (0.0, 1.0)
    assert found.interval.low < 0 < found.interval.high
    with pytest.raises(ValueError, match="different questions"):
        paired_test(measured(first), measured(first[:-1]))
