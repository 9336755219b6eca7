"""Accuracy per group, and what guessing reaches."""

import pytest

from pipeline.evaluation.scores import Answer, Evaluation, Score, score


def answer(kind: str, expected: str, given: str, num_images: int = 1) -> Answer:
    return Answer("key", 0, kind, num_images, "question?", expected, given)


ANSWERS = (
    answer("color", "red", "Red."),
    answer("color", "blue", "red", num_images=2),
    answer("color", "red", "red", num_images=3),
    answer("count", "two", "three"),
    answer("count", "four", "four", num_images=0),
)


def test_score_counts_normalised_matches_and_guesses_per_kind() -> None:
    # Guessing "red" gets 2 of 3 colours, guessing "two" or "four" 1 of 2 counts.
    assert score(ANSWERS) == Score(5, 3 / 5, 3 / 5)


def test_overall_and_kinds_leave_text_only_samples_out() -> None:
    evaluation = Evaluation(0.5, 17, ANSWERS)
    assert evaluation.overall == Score(4, 2 / 4, 3 / 4)
    assert evaluation.by_kind() == {"color": Score(3, 2 / 3, 2 / 3), "count": Score(1, 0.0, 1.0)}


def test_by_images_separates_none_one_and_several() -> None:
    groups = Evaluation(0.5, 17, ANSWERS).by_images()
    assert {name: (group.num_answers, group.accuracy) for name, group in groups.items()} == {
        "text only": (1, 1.0),
        "one image": (2, 0.5),
        "several images": (2, 0.5),
    }


def test_score_of_nothing_says_what_is_needed() -> None:
    with pytest.raises(ValueError, match="no answers to score"):
        score([])
