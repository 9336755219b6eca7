import dataclasses

import numpy as np
import pytest

from pipeline.plan.mixed import MixPhase, MixSource, mix_sources
from pipeline.plan.plan import Plan, RankPlan, build_plan, check_lengths
from pipeline.plan.sources import Sources

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
    with pytest.raises(ValueError, match="step 3 is outside the run's 3 steps"):
        plan.samples(3)


def test_build_plan_without_usable_sample_names_the_command_that_lists_reasons() -> None:
    with pytest.raises(ValueError, match="none of the 5 indexed samples is usable; `ray-llava index`"):
        build_plan(
            np.zeros(5, np.int32), data_fingerprint="f", seed=0, global_batch_size=1, num_epochs=1, max_steps=None,
            micro_batch_tokens=7,
        )  # fmt: skip


def test_split_and_fingerprint_keep_their_golden_values() -> None:
    # Both are in checkpoints: a change here refuses to resume every run there is.
    plan = make_plan()
    assert plan.fingerprint_before(3) == "a0adefba17757932a6c404f29decd74ee8f9bbe260cb11dfe57bd1c387fccf60"
    assert plan.split(2, 2) == (
        RankPlan(2, 0, ((83, 29, 53), (63, 2, 12), (78, 52)), 3485073454),
        RankPlan(2, 1, ((32, 91, 42), (30, 21, 26), (14, 39, 18)), 4034423881),
    )


def test_split_checksum_tells_the_same_samples_in_other_micro_batches_apart() -> None:
    plan = make_plan()
    others = [make_plan(micro_batch_tokens=budget) for budget in (45, 61, 83, 997)]
    assert plan.samples(1).tolist() == others[-1].samples(1).tolist()
    assert len({other.split(1, 1)[0].checksum for other in others}) == len(others)


def test_fingerprint_covers_what_the_order_says_decides_its_steps() -> None:
    orders = [
        mix_sources(
            [MixSource("a", 97), MixSource("b", 103 - 97 - 4)], [MixPhase(0, weights)], seed=5, global_batch_size=17,
            epoch_size=99, num_samples=99,
        )
        for weights in ((1, 1), (2, 1))
    ]  # fmt: skip
    prints = {dataclasses.replace(make_plan(), order=order).fingerprint for order in orders}
    assert len({make_plan().fingerprint, *prints}) == 3


def test_planned_by_source_names_the_counts_of_a_mix_only() -> None:
    order = mix_sources(
        [MixSource("a", 61), MixSource("b", 32)], [MixPhase(0, (2, 1))], seed=5, global_batch_size=6, epoch_size=93,
        num_samples=93,
    )  # fmt: skip
    mixed = dataclasses.replace(make_plan(), order=order, sources=Sources(("a", "b"), (61, 93)))
    assert mixed.planned_by_source(3) == {"a": 12, "b": 6}
    assert make_plan().planned_by_source(3) == {}


@pytest.mark.parametrize("step", [-1, 12, 13])
def test_samples_of_a_step_outside_the_run_are_refused(step: int) -> None:
    plan = make_plan()
    assert (len(plan.samples(0)), len(plan.samples(11))) == (17, 8)
    with pytest.raises(ValueError, match=f"step {step} is outside the run's 12 steps"):
        plan.samples(step)


def test_max_steps_beyond_the_epochs_changes_nothing() -> None:
    assert make_plan(max_steps=13).total_steps == make_plan().total_steps == 12


def test_build_plan_longest_sample_may_fill_a_micro_batch_and_no_more() -> None:
    longest = int(LENGTHS.max())
    assert make_plan(micro_batch_tokens=longest).total_steps == 12
    message = rf"sample {int(LENGTHS.argmax())} has {longest} tokens, .*micro_batch_tokens \({longest - 1}\)"
    with pytest.raises(ValueError, match=message):
        make_plan(micro_batch_tokens=longest - 1)


def test_check_lengths_counts_a_sample_of_one_token_as_usable() -> None:
    usable = check_lengths(np.array([0, 1, 0, 2], np.int32), 2)
    assert usable.rows(np.arange(len(usable))).tolist() == [1, 3]
    assert len(check_lengths(np.array([1], np.int32), 2)) == 1
