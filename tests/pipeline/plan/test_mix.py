"""From config to mix: exact shares, run length, what may change on resume, what a config must not say."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import ConfigError, ExperimentConfig, MixChange, parse_config
from pipeline.plan.mix import check_past_changes, describe_late_changes, order_mix
from pipeline.plan.mixed import MixedOrder

SIZES = {"captions": 600, "chat": 150, "text": 30}


def make_config(data: dict[str, Any], **sources: Any) -> ExperimentConfig:
    named = {name: {"shards": [f"{name}.tar"], **sources.get(name, {})} for name in SIZES}
    return parse_config(
        {
            "name": "mix", "run_dir": "runs/mix", "stage": "finetune", "model": {"language_model": "lm"},
            "training": {"global_batch_size": 13, "learning_rate": 0.1, "num_epochs": 2},
            "data": {"sources": named, "max_length": 99, **data},
        },
        where="test",
    )  # fmt: skip


def order(config: ExperimentConfig) -> MixedOrder:
    training = config.training
    return order_mix(config.data, SIZES, config.seed, training.global_batch_size, training.num_epochs)


def test_order_mix_without_weights_uses_every_sample_once_per_epoch() -> None:
    mixed = order(make_config({}))
    assert mixed.num_steps == 120
    assert mixed.planned(120) == (1200, 300, 60)
    assert mixed.planned(60) == (600, 150, 30)
    assert mixed.epochs_done(30) == 0.5


def test_order_mix_weights_are_shares_of_samples_exactly_as_written() -> None:
    weights = {"captions": {"weight": 0.1}, "chat": {"weight": 0.2}, "text": {"weight": 0.7}}
    mixed = order(make_config({}, **weights))
    assert mixed.phases[0].weights == (1, 2, 7)
    assert mixed.planned(120) == (156, 312, 1092)


def test_order_mix_epochs_of_sources_decide_the_length() -> None:
    epochs = {"captions": {"epochs": 0.5}, "chat": {"epochs": 1}, "text": {"epochs": 3.5}}
    mixed = order(make_config({}, **epochs))
    assert mixed.planned(mixed.num_steps) == (600, 300, 210)


def test_order_mix_temperature_flattens_sizes() -> None:
    mixed = order(make_config({"mix_temperature": 2}))
    captions, chat, text = mixed.phases[0].weights
    assert captions / chat == pytest.approx(2, rel=1e-5)
    assert captions / text == pytest.approx(20**0.5, rel=1e-5)
    # a checkpoint holds a hash of them, so their scale is pinned
    assert (captions, chat, text) == (1000000, 500000, 223607)


@pytest.mark.parametrize(
    ("data", "sources", "message"),
    [
        ({"shards": ["a.tar"]}, {}, "data.shards is required, or data.sources for a mix of several; found both"),
        ({}, {"chat": {"weight": 1}}, "chat set weight, captions, text do not"),
        ({}, {name: {"weight": 0} for name in SIZES}, "every weight is 0"),
        ({}, {name: {"weight": 1, "epochs": 1} for name in SIZES}, "keep one of them"),
        ({"mix_temperature": 3}, {name: {"epochs": 1} for name in SIZES}, "does not go with weight or epochs"),
        ({}, {"chat": {"wieght": 1}}, "unknown key data.sources.chat.wieght; did you mean 'weight'?"),
        (
            {"mix_changes": [{"from_step": 3, "weights": {"chat": 1}}]}, {},
            "expected a weight for each of captions, chat, text, found chat",
        ),
        (
            {"mix_changes": [{"from_step": step, "weights": dict.fromkeys(SIZES, 1)} for step in (5, 5)]}, {},
            "from_step 5 does not come after 5",
        ),
        ({"mix_changes": [{"from": 3, "weights": {}}]}, {}, "unknown key data.mix_changes.0.from"),
    ],
)  # fmt: skip
def test_contradicting_mix_is_refused_by_name(
    data: dict[str, Any], sources: dict[str, dict[str, float]], message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        make_config(data, **sources)
    assert message in str(raised.value)


def test_order_of_sources_in_the_file_does_not_matter() -> None:
    one = make_config({"sources": {"b": {"shards": ["b"]}, "a": {"shards": ["a"]}}})
    other = make_config({"sources": {"a": {"shards": ["a"]}, "b": {"shards": ["b"]}}})
    assert list(one.data.sources) == list(other.data.sources) == ["a", "b"]


def test_with_absolute_paths_reaches_the_shards_of_sources() -> None:
    data = make_config({"sources": {"a": {"shards": ["a.tar", "s3://b/c.tar"]}}}).with_absolute_paths().data
    assert data.sources["a"].shards == (str(Path("a.tar").absolute()), "s3://b/c.tar")


def test_check_past_changes_lets_only_steps_to_come_change() -> None:
    first, later, other = (
        MixChange(from_step=step, weights={"a": weight, "b": 1.0}) for step, weight in ((3, 2.0), (9, 1.0), (7, 5.0))
    )
    check_past_changes([first, later], [first, other], 7)
    check_past_changes([first, later], [first], 9)
    for now in ([], [other], [first, other, later]):
        with pytest.raises(ConfigError, match=r"steps before 8 are trained, with the changes from 3: .*from step 8 on"):
            check_past_changes([first, later], now, 8)


def test_check_past_changes_holds_up_to_the_step_before() -> None:
    change = MixChange(from_step=7, weights={"a": 1.0, "b": 1.0})
    check_past_changes([], [change], 7)
    with pytest.raises(ConfigError, match=r"the changes none; .* now says from 7: \{'a': 1.0, 'b': 1.0\} for"):
        check_past_changes([], [change], 8)


def test_describe_late_changes_names_those_that_never_take_effect() -> None:
    changes = [MixChange(from_step=step, weights={"a": 1.0, "b": float(step)}) for step in (3, 8, 9)]
    told = describe_late_changes(changes, 8)
    assert told is not None
    assert "ends after step 7" in told
    assert "never take effect: from 8: {'a': 1.0, 'b': 8.0}; from 9: " in told
    assert describe_late_changes(changes, 10) is None


def test_order_mix_announced_changes_take_effect_at_their_step() -> None:
    changes = [{"from_step": 4, "weights": {"captions": 0, "chat": 0.5, "text": 1}}]
    mixed = order(make_config({"mix_changes": changes}))
    assert [(phase.first_step, phase.weights) for phase in mixed.phases] == [(0, (600, 150, 30)), (4, (0, 1, 2))]
    assert (mixed.seed, mixed.global_batch_size, mixed.epoch_size) == (0, 13, 780)


def test_order_mix_epochs_that_give_part_of_a_sample_round_the_length_up() -> None:
    epochs = {"captions": {"epochs": 0.001}, "chat": {"epochs": 0.01}, "text": {"epochs": 0.1}}
    mixed = order(make_config({}, **epochs))
    assert mixed.phases[0].weights == (6, 15, 30)  # 0.6, 1.5 and 3 samples
    assert mixed.epoch_size == 6
    assert sum(mixed.planned(mixed.num_steps)) == 11  # 10.2
