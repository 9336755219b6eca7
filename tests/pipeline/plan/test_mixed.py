"""Mixed orders: per-source epochs, announced changes, and nothing but the step as position."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.plan.mixed import MixedOrder, MixPhase, MixSource, mix_sources

SOURCES = (MixSource("captions", 31), MixSource("chat", 11), MixSource("text", 5))
WEIGHTS = st.lists(st.integers(0, 50), min_size=3, max_size=3).filter(any)
PHASES = (MixPhase(0, (3, 2, 1)), MixPhase(4, (1, 5, 0)), MixPhase(9, (0, 1, 1)))


def make_order(phases: tuple[MixPhase, ...] = PHASES, num_samples: int = 197, batch: int = 13) -> MixedOrder:
    return mix_sources(SOURCES, phases, seed=7, global_batch_size=batch, epoch_size=47, num_samples=num_samples)


def source_of(number: int) -> int:
    return int(np.searchsorted([31, 42, 47], number, side="right"))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), WEIGHTS), max_size=3),
    st.integers(1, 17),
    st.integers(1, 300),
)
def test_every_sample_of_a_source_is_used_once_per_epoch_of_it(
    gaps: list[tuple[int, list[int]]], batch: int, num_samples: int
) -> None:
    first, phases = 0, [MixPhase(0, (3, 2, 1))]
    for gap, weights in gaps:
        first += gap
        phases.append(MixPhase(first, (weights[0], weights[1], weights[2])))
    order = make_order(tuple(phases), num_samples, batch)
    numbers = [int(number) for step in range(order.num_steps) for number in order.numbers(step)]
    assert len(numbers) == num_samples
    for source, (start, size) in enumerate(((0, 31), (31, 11), (42, 5))):
        drawn = [number for number in numbers if source_of(number) == source]
        assert len(drawn) == order.planned(order.num_steps)[source]
        for epoch in range(0, len(drawn) - size + 1, size):
            assert sorted(drawn[epoch : epoch + size]) == list(range(start, start + size))
        rest = drawn[len(drawn) // size * size :]
        assert len(set(rest)) == len(rest)


def test_numbers_follow_the_weights_of_the_phase() -> None:
    order = make_order()
    counts = [Counter(source_of(number) for number in order.numbers(step).tolist()) for step in range(order.num_steps)]
    assert sum((count for count in counts[:4]), Counter()) == Counter({0: 26, 1: 18, 2: 8})  # 52 * (3, 2, 1) / 6
    assert sum((count for count in counts[4:9]), Counter()) == Counter({1: 54, 0: 11})
    assert all(count[0] == 0 for count in counts[9:])


def test_changing_the_future_changes_no_earlier_step() -> None:
    before, after = make_order(), make_order((*PHASES[:2], MixPhase(7, (9, 1, 1))))
    same = [np.array_equal(before.numbers(step), after.numbers(step)) for step in range(before.num_steps)]
    assert same[:7] == [True] * 7
    assert not any(same[7:])
    assert before.facts(7) == after.facts(7)
    assert before.facts(8) != after.facts(8)


def test_order_of_a_source_depends_on_its_own_name_and_draws_only() -> None:
    alone = mix_sources(
        SOURCES[:1], [MixPhase(0, (1,))], seed=7, global_batch_size=13, epoch_size=31, num_samples=62
    )  # fmt: skip
    drawn = [number for step in range(5) for number in alone.numbers(step).tolist()]
    mixed = [number for step in range(9) for number in make_order().numbers(step).tolist() if number < 31]
    assert mixed == drawn[: len(mixed)]
    assert len(mixed) > 31


def test_mix_sources_weight_on_an_empty_source_is_refused() -> None:
    with pytest.raises(ValueError, match="source 'none' has no usable sample"):
        mix_sources(
            [*SOURCES[:1], MixSource("none", 0)], [MixPhase(0, (1, 0)), MixPhase(3, (1, 1))],
            seed=0, global_batch_size=3, epoch_size=31, num_samples=31,
        )  # fmt: skip


def test_numbers_keep_their_golden_order() -> None:
    # A change here would silently reorder the data of every mix that resumes.
    order = make_order()
    assert order.num_steps == 16
    assert order.numbers(0).tolist() == [19, 22, 8, 25, 27, 5, 17, 32, 38, 36, 31, 43, 44]
    assert order.numbers(4).tolist() == [1, 29, 35, 34, 37, 39, 36, 37, 39, 38, 35, 32, 40]
    assert order.numbers(15).tolist() == [41, 44]


def test_order_ends_before_a_phase_that_would_begin_with_its_end() -> None:
    short = make_order(num_samples=4 * 13)
    assert (short.num_steps, len(short.planned_phases)) == (4, 1)
    assert short.planned(4) == (26, 18, 8)
    longer = make_order(num_samples=4 * 13 + 1)
    assert (longer.num_steps, len(longer.planned_phases)) == (5, 2)
    assert sum(longer.planned(5)) == 53


def test_epochs_done_and_facts_count_from_the_first_step() -> None:
    order = make_order()
    assert (order.epochs_done(0), order.epochs_done(2)) == (0, 26 / 47)
    sources = [["captions", 31], ["chat", 11], ["text", 5]]
    assert order.facts(0) == order.facts(4) == [sources, [[0, (3, 2, 1)]]]
    assert order.facts(5) == [sources, [[0, (3, 2, 1)], [4, (1, 5, 0)]]]


def test_mix_sources_more_than_one_bit_each_are_refused() -> None:
    def mix(count: int) -> MixedOrder:
        sources = [MixSource(f"s{idx}", 3) for idx in range(count)]
        phases = [MixPhase(0, (1,) * count)]
        return mix_sources(sources, phases, seed=0, global_batch_size=5, epoch_size=9, num_samples=3 * count)

    assert mix(64).planned(39) == (3,) * 63 + (3,)
    with pytest.raises(ValueError, match="65 sources; a mix has at most 64"):
        mix(65)


def test_mix_sources_empty_source_without_a_weight_is_left_out() -> None:
    order = mix_sources(
        [*SOURCES[:1], MixSource("none", 0), SOURCES[1]], [MixPhase(0, (1, 0, 1))], seed=0, global_batch_size=4,
        epoch_size=42, num_samples=8,
    )  # fmt: skip
    assert order.planned(2) == (4, 0, 4)
    assert max(order.numbers(0).tolist()) >= 31
