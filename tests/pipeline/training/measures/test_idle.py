"""A run whose gradients stay zero is stopped; single steps without a gradient are not its end."""

import pytest

from pipeline.training.measures.idle import IdleSteps, NothingLearnedError


def test_run_without_any_gradient_does_not_finish() -> None:
    idle = IdleSteps(0)
    idle.add(0, 0.0, is_last=False)
    idle.add(1, None, is_last=False)
    with pytest.raises(NothingLearnedError, match="exactly 0 in the 2 steps up to step 2"):
        idle.add(2, 0.0, is_last=True)


def test_hundred_steps_in_a_row_end_the_run_and_any_gradient_between_them_starts_the_count_again() -> None:
    idle = IdleSteps(7)
    for step in range(7, 106):
        idle.add(step, 0.0, is_last=False)
    idle.add(106, 1e-9, is_last=False)
    for step in range(107, 206):
        idle.add(step, 0.0, is_last=False)
    with pytest.raises(NothingLearnedError, match="up to step 206"):
        idle.add(206, 0.0, is_last=False)


def test_last_steps_without_a_gradient_finish_a_run_that_has_learned_or_was_resumed_for_them() -> None:
    learned = IdleSteps(0)
    learned.add(0, 0.5, is_last=False)
    learned.add(1, 0.0, is_last=True)
    IdleSteps(40).add(40, 0.0, is_last=True)
