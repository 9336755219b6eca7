import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.plan.packing import pack_step


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 97), max_size=60),
    num_ranks=st.integers(1, 9),
    budget=st.integers(97, 401),
)
def test_pack_step_any_lengths_keeps_every_sample_once_within_budget(
    lengths: list[int], num_ranks: int, budget: int
) -> None:
    ranks = pack_step(lengths, num_ranks, budget)
    assert len(ranks) == num_ranks
    assert len({len(batches) for batches in ranks}) == 1
    assert sorted(idx for batches in ranks for batch in batches for idx in batch) == list(range(len(lengths)))
    assert all(sum(lengths[idx] for idx in batch) <= budget for batches in ranks for batch in batches)
    assert all(list(batch) == sorted(batch) for batches in ranks for batch in batches)


def test_pack_step_fewer_samples_than_ranks_gives_explicit_empty_micro_batches() -> None:
    assert pack_step([5, 7], 3, 11) == (((1,),), ((0,),), ((),))


def test_pack_step_sample_above_budget_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="sample 1 of the step has 13 tokens, above the budget of 11"):
        pack_step([3, 13], 2, 11)
