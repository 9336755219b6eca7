"""Every score comes with its blind baselines; what a metric needs is checked before anything is computed."""

from __future__ import annotations

import pytest

from model.fusion.constants import DEFAULT_IMAGE_TOKEN
from pipeline.evaluation.metrics.choice import ROTATION
from pipeline.evaluation.metrics.registry import find_metrics
from pipeline.evaluation.questions import EvaluationSample, describe
from pipeline.evaluation.results import check_metrics, score
from pipeline.evaluation.rotation import rotations, with_listed_options
from pipeline.evaluation.run import other_samples
from pipeline.evaluation.scores import Answer
from pipeline.samples.prompt.conversation import Conversation, Turn, split_placeholders
from pipeline.samples.schema import Sample


def sample(question: str, expected: str, key: str = "k", num_images: int = 1, **fields: object) -> EvaluationSample:
    turns = (
        Turn("user", split_placeholders(DEFAULT_IMAGE_TOKEN * num_images + question)),
        Turn("assistant", (expected,)),
    )
    images = tuple(f"{key}{idx}".encode() for idx in range(num_images))
    return describe(Sample(key=key, kind="instruction", images=images, conversation=Conversation(turns)), dict(fields))


def answers(rights: int, total: int) -> list[Answer]:
    expected = ["red", "blue"] * total
    return [
        Answer(f"k{idx}", 0, "color", 1, "?", expected[idx], expected[idx] if idx < rights else "none of them")
        for idx in range(total)
    ]


def test_a_score_that_blind_models_reach_is_marked() -> None:
    (metric,) = find_metrics(["exact_match"])
    seen = score(metric, {"seeing": answers(90, 100), "blank": answers(30, 100), "shuffled": answers(35, 100)})
    assert not seen.may_be_blind
    assert seen.flat() == {
        "exact_match": 0.9, "exact_match_blank": 0.3, "exact_match_shuffled": 0.35, "exact_match_majority": 0.5,
    }  # fmt: skip
    guessed = score(metric, {"seeing": answers(52, 100), "blank": answers(30, 100)})
    assert guessed.may_be_blind
    assert guessed.to_json()["may_be_blind"] is True
    assert guessed.blind["majority"].value == 0.5


def test_fields_of_a_sample_say_what_is_accepted() -> None:
    found = sample(
        "What?", "red", answers=[{"answer": "red"}, "dark red"], options=["red", "blue"], group=7, category="c"
    )
    assert (found.references, found.options, found.group, found.kinds) == (
        ("red", "dark red"), ("red", "blue"), "7", ("c",),
    )  # fmt: skip
    turns = found.sample.conversation.turns
    two = found.sample._replace(conversation=Conversation((*turns, *turns)))
    with pytest.raises(ValueError, match="`answers` belongs to one question but the conversation has 2"):
        describe(two, {"answers": ["red"]})
    with pytest.raises(ValueError, match="names 1 question kinds but the conversation has 2"):
        describe(two, {"kinds": ["color"]})


def test_metrics_are_checked_against_the_samples_first() -> None:
    listed = sample("Which?\nA. red\nB. blue", "B")
    check_metrics([listed], find_metrics(["multiple_choice", "multiple_choice_circular", "exact_match", "loss"]))
    with pytest.raises(ValueError, match="sample k: vqa_accuracy needs"):
        check_metrics([listed], find_metrics(["vqa_accuracy"]))
    with pytest.raises(ValueError, match="sample other: multiple_choice needs options"):
        check_metrics([listed, sample("What?", "red", "other")], find_metrics(["multiple_choice"]))


def test_rotations_move_options_and_the_right_letter_with_them() -> None:
    (listed,) = with_listed_options([sample("Which?\nA. red\nB. blue\nC. green\nAnswer.", "C")])
    asked = [(one.asked[0], one.options, one.sample.key) for one in rotations(listed)]
    assert asked == [
        (("Which?\nA. blue\nB. green\nC. red\nAnswer.", "B"), ("blue", "green", "red"), f"k{ROTATION}1"),
        (("Which?\nA. green\nB. red\nC. blue\nAnswer.", "A"), ("green", "red", "blue"), f"k{ROTATION}2"),
    ]
    by_text = next(rotations(with_listed_options([sample("Which?\nA. red\nB. blue", "blue")])[0]))
    assert by_text.asked == [("Which?\nA. blue\nB. red", "blue")]
    assert list(rotations(sample("What?", "red", options=["red", "blue"]))) == []


def test_shuffled_images_come_from_another_sample_with_as_many() -> None:
    counts = [1, 2, 1, 1, 2, 0, 1, 3]
    samples = [sample("What?", "red", str(idx), count) for idx, count in enumerate(counts)]
    partners = other_samples(samples)
    assert [counts[partner] for partner in partners] == counts
    assert sorted(partners) == list(range(8))
    assert [idx for idx, partner in enumerate(partners) if idx == partner] == [5, 7]
