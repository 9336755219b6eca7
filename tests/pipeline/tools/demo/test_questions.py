"""Questions have the answers that their scenes give, and no answer is much commoner than the others."""

import random
from collections import Counter

import pytest

from pipeline.tools.demo.questions import Question, ask, caption, with_article
from pipeline.tools.demo.scenes import COLORS, SHAPES, Scene, Thing, random_scene


def thing(color: str, shape: str, row: int, column: int) -> Thing:
    return Thing(color, shape, row, column, column + 0.5, row + 0.5, 0.5, 0.0, COLORS[color])


def scene(*things: Thing) -> Scene:
    return Scene(things, 6, 6, (230, 230, 230), 0)


FIRST = scene(thing("red", "circle", 0, 0), thing("blue", "circle", 2, 3), thing("red", "cross", 5, 5))
SECOND = scene(thing("orange", "star", 3, 0))


def all_questions(*scenes: Scene) -> dict[str, Question]:
    """Ask so often that every question comes up."""
    rng = random.Random(5)
    return {q.text: q for _ in range(1500) for q in ask(rng, scenes, 5, one_wording=True)}


def test_ask_about_one_image_gives_the_right_answers() -> None:
    answers = {text: question.answer for text, question in all_questions(FIRST).items()}
    expected = {
        "What color is the cross?": "red",
        "What color is the object in the middle?": "blue",
        "What shape is the blue object?": "circle",
        "What shape is the object at the bottom right?": "cross",
        "How many objects are there?": "three",
        "How many circles are there?": "two",
        "How many crosses are there?": "one",
        "How many red objects are there?": "two",
        "How many yellow objects are there?": "zero",
        "Is there a blue circle?": "yes",
        "Is there a blue cross?": "no",
    }
    assert {text: answers.get(text) for text in expected} == expected
    assert "What color is the circle?" not in answers  # two circles: the question has no one answer
    assert "What shape is the red object?" not in answers


def test_ask_about_two_images_says_which_and_counts_over_all() -> None:
    questions = all_questions(FIRST, SECOND)
    expected = {
        "What color is the star in the second image?": "orange",
        "How many objects are there in the first image?": "three",
        "How many objects are there in all images?": "four",
        "Is there an orange star in the first image?": None,
        "Is there a red star in the second image?": "no",
        "Which image shows an orange object?": "second",
        "Which image shows a circle?": "first",
    }
    assert {text: questions[text].answer if text in questions else None for text in expected} == expected
    assert questions["Which image shows a circle?"].kind == "which_image"


def test_which_image_is_not_asked_for_what_several_images_show() -> None:
    questions = all_questions(FIRST, scene(thing("green", "circle", 1, 1)))
    assert "Which image shows a circle?" not in questions
    assert "Which image shows a green circle?" in questions


def test_ask_with_several_wordings_uses_all_of_them() -> None:
    rng = random.Random(3)
    texts = {q.text for _ in range(400) for q in ask(rng, [SECOND], 4, one_wording=False) if q.kind == "color"}
    assert {
        "What color is the star?",
        "Name the color of the star.",
        "Which color does the star have?",
    } <= texts


def test_ask_never_repeats_a_question_and_keeps_to_the_limit() -> None:
    rng = random.Random(11)
    for _ in range(200):
        questions = ask(rng, [random_scene(rng, 3), random_scene(rng, 2)], 7, one_wording=True)
        assert len({question.text for question in questions}) == len(questions) <= 7


def test_answers_are_balanced_so_that_guessing_does_not_pay() -> None:
    rng = random.Random(13)
    answers: dict[str, Counter[str]] = {}
    for _ in range(1200):
        for question in ask(rng, [random_scene(rng, rng.randint(1, 4))], 4, one_wording=False):
            answers.setdefault(question.kind, Counter())[question.answer] += 1
    shares = {kind: max(counts.values()) / counts.total() for kind, counts in answers.items()}
    assert shares["color"] < 0.25
    assert shares["shape"] < 0.3
    assert shares["count"] < 0.45
    assert shares["existence"] < 0.58
    assert set(answers["color"]) == set(COLORS)
    assert set(answers["shape"]) == set(SHAPES)


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (SECOND, "an orange star at the left."),
        (FIRST, "a red circle at the top left, a blue circle in the middle, a red cross at the bottom right."),
    ],
)
def test_caption_names_everything_in_reading_order(shown: Scene, text: str) -> None:
    captions = {caption(random.Random(seed), shown) for seed in range(20)}
    number = {1: "one object", 3: "three objects"}[len(shown.things)]
    assert captions == {text, f"{number}: {text}"}


def test_with_article_follows_the_first_letter() -> None:
    assert [with_article(word) for word in ("orange cross", "red star", "object")] == [
        "an orange cross",
        "a red star",
        "an object",
    ]
