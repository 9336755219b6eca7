"""What a plan's packing makes of its budget, on steps small enough to pack by hand."""

import numpy as np
import pytest

from pipeline.plan.efficiency import measure_packing
from pipeline.plan.plan import Plan, build_plan


def make_plan(lengths: list[int], batch: int, budget: int) -> Plan:
    return build_plan(
        np.array(lengths, np.int32), data_fingerprint="f", seed=5, global_batch_size=batch, num_epochs=1,
        max_steps=None, micro_batch_tokens=budget,
    )  # fmt: skip


def test_measure_packing_of_one_step_is_as_counted_by_hand() -> None:
    report = measure_packing(make_plan([5, 7, 3, 11], 4, 16), num_ranks=2)  # packed as 11 + 3 and 7 + 5
    assert (report.num_ranks, report.num_steps, report.micro_batches_per_step) == (2, 1, 1)
    assert (report.tokens_per_step, report.most_tokens) == (26, 14)
    assert report.fill == pytest.approx(26 / (2 * 16))
    assert report.balance == pytest.approx(26 / (2 * 14))
    assert report.padding_avoided == pytest.approx(1 - 26 / (2 * 11 + 2 * 7))


def test_measure_packing_of_samples_alone_in_their_micro_batches_avoids_no_padding() -> None:
    report = measure_packing(make_plan([5, 7, 3, 11], 4, 13), num_ranks=2)  # packed as 11, 3 and 7, 5
    assert (report.micro_batches_per_step, report.most_tokens) == (2, 11)
    assert report.fill == pytest.approx(26 / (4 * 13))
    assert report.balance == pytest.approx(26 / (2 * (11 + 5)))
    assert report.padding_avoided == 0


@pytest.mark.parametrize(("max_steps", "num_steps", "tokens"), [(2, 2, 12.5), (3, 3, 15), (64, 3, 15)])
def test_measure_packing_looks_at_the_first_and_last_and_steps_between(
    max_steps: int, num_steps: int, tokens: float
) -> None:
    report = measure_packing(make_plan([5] * 9, 4, 10), 1, max_steps)  # steps of 20, 20 and 5 tokens
    assert (report.num_steps, report.tokens_per_step) == (num_steps, tokens)
    assert report.micro_batches_per_step == (1.5 if num_steps == 2 else pytest.approx(5 / 3))
    assert report.most_tokens == 10


def test_measure_packing_counts_empty_micro_batches_as_waiting() -> None:
    report = measure_packing(make_plan([7], 1, 7), num_ranks=3)
    assert report.fill == pytest.approx(1 / 3)
    assert report.balance == pytest.approx(1 / 3)
    assert report.padding_avoided == 0
