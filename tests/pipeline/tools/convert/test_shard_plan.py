"""The shard plan: every entry once, limits kept, order a pure function of the seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tools.convert.shard_plan import ShardLimits, cut_shards, order_entries

blocks_strategy = st.lists(st.integers(0, 5), max_size=40).map(lambda values: np.sort(np.array(values, np.int64)))


@settings(deadline=None)
@given(blocks=blocks_strategy, seed=st.integers(0, 7))
def test_order_with_seed_is_a_permutation_that_keeps_blocks_together(blocks: np.ndarray, seed: int) -> None:
    order = order_entries(blocks, seed)
    assert sorted(order.tolist()) == list(range(blocks.size))
    shuffled = blocks[order]
    assert np.count_nonzero(np.diff(shuffled)) == max(0, len(set(blocks.tolist())) - 1)
    assert (order == order_entries(blocks, seed)).all()


def test_order_without_seed_is_that_of_the_listing_and_seeds_differ() -> None:
    blocks = np.arange(101, dtype=np.int64)
    assert order_entries(blocks, None).tolist() == list(range(101))
    assert order_entries(blocks, 3).tolist() != order_entries(blocks, 5).tolist()
    assert order_entries(np.zeros(101, np.int64), 3).tolist() != list(range(101))


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 50), max_size=40), samples=st.integers(1, 9), size=st.integers(1, 90))
def test_cut_covers_all_entries_and_keeps_limits(sizes: list[int], samples: int, size: int) -> None:
    cuts = cut_shards(np.array(sizes, np.int64), ShardLimits(samples, size))
    assert [start for start, _ in cuts] == [0, *(end for _, end in cuts[:-1])][: len(cuts)]
    assert (cuts[-1][1] if cuts else 0) == len(sizes)
    for start, end in cuts:
        assert 1 <= end - start <= samples
        assert sum(sizes[start:end]) <= size or end - start == 1
        full = end == len(sizes) or end - start == samples or sum(sizes[start : end + 1]) > size
        assert full


def test_cut_with_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        cut_shards(np.ones(3, np.int64), ShardLimits(0, 5))
