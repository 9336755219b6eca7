"""The order of one data set: what each step of each epoch holds, and how far the run is before it."""

import pytest

from pipeline.plan.epochs import EpochOrder

ORDER = EpochOrder(num_samples=23, seed=5, global_batch_size=7, num_epochs=3)


def test_numbers_fill_steps_and_leave_the_rest_to_the_last_of_an_epoch() -> None:
    assert (ORDER.steps_per_epoch, ORDER.num_steps) == (4, 12)
    assert [len(ORDER.numbers(step)) for step in range(12)] == [7, 7, 7, 2] * 3
    for epoch in range(3):
        drawn = [number for step in range(4 * epoch, 4 * epoch + 4) for number in ORDER.numbers(step).tolist()]
        assert sorted(drawn) == list(range(23))


def test_numbers_of_two_epochs_differ_in_order() -> None:
    assert ORDER.numbers(0).tolist() != ORDER.numbers(4).tolist()


@pytest.mark.parametrize(
    ("step", "planned", "epochs"), [(0, 0, 0), (3, 21, 0.75), (4, 23, 1), (6, 37, 1.5), (12, 69, 3)]
)
def test_planned_and_epochs_done_count_what_lies_before_a_step(step: int, planned: int, epochs: float) -> None:
    assert ORDER.planned(step) == (planned,)
    assert ORDER.epochs_done(step) == epochs


def test_facts_add_nothing_to_data_seed_and_batch_size() -> None:
    assert ORDER.facts(5) == []
