import numpy as np
import pytest

from pipeline.plan.plan import Plan, build_plan

LENGTHS = np.array([(7 * idx) % 41 + 3 if idx % 11 else 0 for idx in range(103)], dtype=np.int32)


def make_plan(**changes: int | str | None) -> Plan:
    settings = {
        "data_fingerprint": "f", "seed": 5, "global_batch_size": 17, "num_epochs": 2, "max_steps": None,
        "micro_batch_tokens": 61,
    }  # fmt: skip
    return build_plan(LENGTHS, **(settings | changes))  # type: ignore[arg-type]


def test_samples_over_an_epoch_cover_every_usable_sample_once() -> None:
    plan = make_plan()
    steps_per_epoch = plan.total_steps // 2
    for epoch in range(2):
        steps = range(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch)
        ids = [sample_id for step in steps for sample_id in plan.samples(step).tolist()]
        assert sorted(ids) == np.flatnonzero(LENGTHS).tolist()


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 6, 8])
def test_split_any_number_of_ranks_holds_the_same_global_batches(num_ranks: int) -> None:
    plan = make_plan()
    for step in range(plan.total_steps):
        ranks = plan.split(step, num_ranks)
        ids = [sample_id for rank in ranks for batch in rank.micro_batches for sample_id in batch]
        assert sorted(ids) == sorted(plan.samples(step).tolist())


def test_split_checksum_differs_for_every_step_and_rank() -> None:
    plan = make_plan()
    checksums = [rank.checksum for step in range(plan.total_steps) for rank in plan.split(step, 3)]
    assert len(set(checksums)) == len(checksums)


def test_num_planned_counts_the_samples_of_all_earlier_steps() -> None:
    plan = make_plan()
    planned = 0
    for step in range(plan.total_steps):
        assert plan.num_planned(step) == planned
        planned += len(plan.samples(step))
    assert plan.num_planned(plan.total_steps) == planned == 2 * np.count_nonzero(LENGTHS)


def test_fingerprint_changes_with_data_seed_and_batch_but_not_with_the_cut() -> None:
    base = make_plan().fingerprint_before(3)
    assert make_plan(micro_batch_tokens=53).fingerprint_before(3) == base
    assert make_plan(max_steps=3).fingerprint_before(3) == base
    changes: list[dict[str, int | str | None]] = [{"seed": 6}, {"global_batch_size": 19}, {"data_fingerprint": "g"}]
    assert len({base, *(make_plan(**change).fingerprint_before(3) for change in changes)}) == 4


def test_max_steps_ends_the_run_early() -> None:
    plan = make_plan(max_steps=3)
    assert plan.total_steps == 3
    with pytest.raises(ValueError, match="step 3 lies outside the run's 3 steps"):
        plan.samples(3)


def test_build_plan_without_usable_sample_names_the_command_that_lists_reasons() -> None:
    with pytest.raises(ValueError, match="none of the 5 indexed samples is usable; `ray-llava index`"):
        build_plan(
            np.zeros(5, np.int32), data_fingerprint="f", seed=0, global_batch_size=1, num_epochs=1, max_steps=None,
            micro_batch_tokens=7,
        )  # fmt: skip
