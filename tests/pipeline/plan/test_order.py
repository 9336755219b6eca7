import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.plan.order import permute


@settings(max_examples=60, deadline=None)
@given(num_items=st.integers(1, 700), seed=st.integers(0, 2**63), epoch=st.integers(0, 5))
def test_permute_all_positions_yields_every_item_once(num_items: int, seed: int, epoch: int) -> None:
    items = permute(np.arange(num_items), num_items, seed, epoch)
    assert sorted(items.tolist()) == list(range(num_items))


def test_permute_pinned_algorithm_keeps_golden_order() -> None:
    # A change here would silently reorder the data of every experiment that resumes.
    assert permute(np.arange(13), 13, 5, 0).tolist() == [3, 7, 8, 4, 6, 1, 12, 5, 9, 11, 0, 10, 2]
    assert permute(np.arange(16), 16, 7, 3).tolist() == [15, 1, 13, 3, 7, 6, 2, 4, 9, 8, 12, 10, 14, 0, 11, 5]
    assert permute(np.arange(2), 2, 1, 0).tolist() == [1, 0]
    assert permute(np.arange(4), 2**33 + 1, 5, 1).tolist() == [6810034056, 3546789915, 2156980283, 6751926904]
    assert permute(np.arange(13), 13, 5, 1).tolist() == [4, 11, 10, 1, 2, 8, 6, 5, 9, 7, 3, 0, 12]


def test_permute_subset_of_positions_equals_slice_of_the_whole() -> None:
    whole = permute(np.arange(1009), 1009, 3, 2)
    assert permute(np.arange(401, 467), 1009, 3, 2).tolist() == whole[401:467].tolist()


def test_permute_other_seed_or_epoch_gives_an_unrelated_order() -> None:
    base = permute(np.arange(997), 997, 11, 0)
    for other in (permute(np.arange(997), 997, 12, 0), permute(np.arange(997), 997, 11, 1)):
        # two independent permutations agree in about one place
        assert int((base == other).sum()) < 8


def test_permute_first_items_spread_evenly_over_the_domain() -> None:
    counts = np.zeros(7)
    for seed in range(701):
        counts[permute(np.arange(1), 7, seed, 0)[0]] += 1
    assert counts.min() > 60  # 100 expected


def test_permute_position_outside_domain_is_refused() -> None:
    for positions, found in (([5, 4], r"4\.\.5"), ([4, -1], r"-1\.\.4")):
        with pytest.raises(ValueError, match=rf"positions must be in \[0, 5\), found {found}"):
            permute(np.array(positions), 5, 0, 0)
    assert permute(np.zeros(0, np.int64), 5, 0, 0).tolist() == []
