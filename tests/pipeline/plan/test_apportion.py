"""Shares of sources in whole samples: exact sums, never a sample off, never backwards, repeated from the period on."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.plan.apportion import apportion

WEIGHTS = st.lists(st.one_of(st.integers(0, 7), st.integers(0, 10**6)), min_size=1, max_size=9).filter(any)


@settings(max_examples=150, deadline=None)
@given(WEIGHTS, st.integers(1, 71), st.integers(1, 1500))
def test_counts_of_every_prefix_are_within_one_sample_of_the_shares(
    weights: list[int], step_size: int, num_samples: int
) -> None:
    found = apportion(weights, step_size, num_samples)
    total = sum(weights)
    before = (0,) * len(weights)
    for step in range(-(-num_samples // step_size) + 1):
        drawn = min(step * step_size, num_samples)
        counts = found.counts(step)
        assert sum(counts) == drawn
        for weight, count, earlier in zip(weights, counts, before, strict=True):
            assert abs(count * total - weight * drawn) < total  # |count - w t| < 1, in whole numbers
            assert count >= earlier
        before = counts


def test_counts_of_many_small_sources_beside_a_large_one_never_bunch() -> None:
    found = apportion([900, *[1] * 60], 7, 9600)
    counts = np.array([found.counts(step) for step in range(9600 // 7 + 1)])
    per_step = np.diff(counts, axis=0)
    assert per_step[:, 0].min() >= 5  # 7 * 900 / 960 = 6.6
    assert per_step[:, 1:].max() == 1


@pytest.mark.parametrize(("weights", "steps"), [([3, 1], 1), ([2, 2, 2], 3), ([5, 0, 7], 3)])
def test_apportion_stores_one_period_only(weights: list[int], steps: int) -> None:
    assert len(apportion(weights, 4, 10**9).ahead) == steps


def test_counts_far_into_a_long_run_repeat_the_period() -> None:
    found = apportion([1, 2, 4], 5, 7 * 10**9)
    steps = [10**9 * 7 // 5 - 7 + offset for offset in range(8)]
    counts = [found.counts(step) for step in steps]
    assert counts[-1] == (10**9, 2 * 10**9, 4 * 10**9)
    near = [found.counts(step) for step in range(8)]
    assert [np.subtract(*pair).tolist() for pair in itertools.pairwise(counts)] == [
        np.subtract(*pair).tolist() for pair in itertools.pairwise(near)
    ]


@given(WEIGHTS, st.integers(1, 71), st.integers(1, 300))
def test_apportion_has_no_other_counts_for_a_multiple_of_the_weights(
    weights: list[int], step_size: int, num_samples: int
) -> None:
    found, tripled = (apportion([factor * one for one in weights], step_size, num_samples) for factor in (1, 3))
    assert found.weights == tripled.weights
    assert found.ahead.tolist() == tripled.ahead.tolist()
    assert found.ahead_at_end == tripled.ahead_at_end


def test_counts_keep_their_golden_values() -> None:
    found = apportion([3, 5, 0, 7, 1], 6, 40)
    assert [found.counts(step) for step in range(8)] == [
        (0, 0, 0, 0, 0), (1, 2, 0, 3, 0), (2, 4, 0, 6, 0), (3, 6, 0, 8, 1), (4, 8, 0, 11, 1), (6, 10, 0, 13, 1),
        (7, 11, 0, 16, 2), (7, 13, 0, 18, 2),
    ]  # fmt: skip
    assert found.ahead.tolist() == [0, 10, 10, 10, 10, 3, 9]
    ends = [apportion([3, 5, 0, 7, 1], 6, num_samples).ahead_at_end for num_samples in range(1, 17)]
    assert ends == [8, 10, 10, 9, 3, 10, 8, 10, 11, 9, 10, 10, 9, 3, 11, 0]
