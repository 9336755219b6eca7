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


GOLDEN_LENGTHS = [(37 * idx * idx + 11 * idx) % 89 + 3 for idx in range(23)]


@pytest.mark.parametrize(
    ("num_ranks", "budget", "expected"),
    [
        (
            2, 101,
            (((6, 12), (2, 3), (7, 9), (8, 16), (1, 19), (22,)),
             ((11, 15), (10, 14), (4, 13), (17, 20), (0, 21), (5, 18))),
        ),
        (
            3, 151,
            (((6, 11), (3, 10, 15), (2, 19)), ((4, 17, 21), (0, 1, 9), (5, 12, 18)), ((8, 20), (7, 13, 14), (16, 22))),
        ),
        (
            4, 97,
            (
                ((21,), (9,), (1, 3), (5, 8)), ((22,), (20,), (6,), (0, 4, 19)), ((18,), (10,), (11,), (14, 16)),
                ((2,), (13,), (7, 15), (12, 17)),
            ),
        ),
        (
            1, 600,
            (((1, 2, 3, 4, 6, 7, 9, 10, 15, 19, 21), (0, 5, 8, 11, 12, 13, 14, 16, 17, 18, 20, 22)),),
        ),
    ],
)  # fmt: skip
def test_pack_step_pinned_algorithm_keeps_golden_cuts(
    num_ranks: int, budget: int, expected: tuple[tuple[tuple[int, ...], ...], ...]
) -> None:
    # Ranks plan for themselves: a change here makes workers of two versions refuse each other's rank-steps.
    assert pack_step(GOLDEN_LENGTHS, num_ranks, budget) == expected


@given(st.lists(st.integers(1, 97), max_size=40), st.integers(1, 5), st.integers(97, 201))
def test_pack_step_needs_at_most_one_micro_batch_more_than_half_full_ones(
    lengths: list[int], num_ranks: int, budget: int
) -> None:
    depth = len(pack_step(lengths, num_ranks, budget)[0])
    least = max(1, -(-sum(lengths) // (num_ranks * budget)))
    assert least <= depth <= max(1, -(-2 * sum(lengths) // (num_ranks * budget)) + 1)


def test_pack_step_sample_as_long_as_the_budget_fits() -> None:
    assert pack_step([11, 11], 1, 11) == (((0,), (1,)),)
    assert pack_step([5, 6], 1, 11) == (((0, 1),),)
    assert pack_step([], 2, 11) == (((),), ((),))
