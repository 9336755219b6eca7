"""Every metric against values that its paper's rule, or its published implementation, gives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from pipeline.config.evaluation import LOWER_IS_BETTER, METRIC_NAMES
from pipeline.evaluation.metrics.captions import tokenize_caption
from pipeline.evaluation.metrics.choice import ROTATION, chosen_option, options_in
from pipeline.evaluation.metrics.registry import METRICS
from pipeline.evaluation.metrics.text import levenshtein
from pipeline.evaluation.metrics.vqa import normalize_vqa
from pipeline.evaluation.metrics.yes_no import says_yes
from pipeline.evaluation.scores import Answer


def answer(given: str, expected: str = "", *references: str, key: str = "k", kind: str = "all", **more: Any) -> Answer:
    return Answer(key, 0, kind, 1, "question?", expected, given, references)._replace(**more)


def figures(name: str, *answers: Answer) -> dict[str, float]:
    return METRICS[name].measure(answers).figures()


def value(name: str, *answers: Answer) -> float:
    return figures(name, *answers)[""]


def test_config_and_registry_know_the_same_metrics() -> None:
    assert tuple(METRICS) == METRIC_NAMES
    assert {name for name, metric in METRICS.items() if metric.direction == "min"} == LOWER_IS_BETTER


@pytest.mark.parametrize(
    ("given", "expected", "score"),
    [("Red.", "red", 1), (" dark  red", "Dark red", 1), ("red", "blue", 0), ("red!", "red", 0), ("", "red", 0)],
)
def test_exact_match(given: str, expected: str, score: float) -> None:
    assert value("exact_match", answer(given, expected)) == score


def test_exact_match_accepts_any_reference() -> None:
    assert value("exact_match", answer("b", "a", "a", "B."), answer("c", "a", "a", "b")) == 0.5


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The Cat.", "cat"), ("two", "2"), ("none", "0"), ("1,000", "1000"), ("3.5", "3.5"), ("a.b", "ab"),
        ("don't", "don't"), ("dont", "don't"), ("couldn'tve", "couldn't've"), ("its", "its"),
        ("yes, it is", "yes it is"),
        ("black/white", "black white"), ("black / white", "black white"), ("t-shirt", "t shirt"),
        ("an\napple", "apple"),
        ("yall", "y'all"), ("10:30", "10:30"), ("(left)", "left"), ("$5", "$5"), ("what?!", "what"),
    ],
)  # fmt: skip
def test_vqa_normalisation(text: str, normalized: str) -> None:
    assert normalize_vqa(text) == normalized


@pytest.mark.parametrize(
    ("matches", "accuracy"),
    # of the ten sets of nine people: those who gave the answer are left out once each
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_vqa_accuracy_by_number_of_people(matches: int, accuracy: float) -> None:
    people = ["two"] * matches + [f"other {idx}" for idx in range(10 - matches)]
    assert value("vqa_accuracy", answer("2.", "two", *people)) == pytest.approx(accuracy)


def test_vqa_accuracy_without_people_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match=r"sample k: vqa_accuracy needs .* `answers`"):
        value("vqa_accuracy", answer("2", "two"))


@pytest.mark.parametrize(
    ("given", "expected", "score"),
    [
        ("95", "100", 1), ("105", "100", 1), ("94.9", "100", 0), ("-5", "5", 0), ("50%", "0.5", 1), ("0.52", "50%", 1),
        ("0", "0", 1), ("0.0", "0", 0), ("Yes", "yes", 1), ("yes it is", "yes", 0), ("10", "ten", 0), ("", "3", 0),
    ],
)  # fmt: skip
def test_relaxed_accuracy(given: str, expected: str, score: float) -> None:
    assert value("relaxed_accuracy", answer(given, expected)) == score


@pytest.mark.parametrize(
    ("given", "references", "score"),
    [
        ("Hello", ("hello",), 1.0), ("helo", ("hello",), 0.8), ("hxxxo", ("hello",), 0.0), ("ab", ("ac",), 0.5),
        ("03/12", ("march", "03/13"), 0.8), ("", ("x",), 0.0), ("a  b", ("A b",), 1.0),
    ],
)  # fmt: skip
def test_anls(given: str, references: tuple[str, ...], score: float) -> None:
    assert value("anls", answer(given, references[0], *references)) == pytest.approx(score)


@pytest.mark.parametrize(
    ("first", "second", "distance"), [("kitten", "sitting", 3), ("", "abc", 3), ("flaw", "lawn", 2), ("ab", "ab", 0)]
)
def test_levenshtein(first: str, second: str, distance: int) -> None:
    assert levenshtein(first, second) == levenshtein(second, first) == distance


@pytest.mark.parametrize(
    ("given", "score"),
    [
        ("[0.0, 0.0, 0.5, 0.5]", 1), ("It is at [0.0, 0.0, 0.5, 1.0].", 1), ("[0, 0, 1, 0.99]", 0),
        ("[0.6, 0.6, 1, 1]", 0),
        ("left", 0), ("[0, 0, 0.5]", 0),
    ],
)  # fmt: skip
def test_box_accuracy(given: str, score: float) -> None:
    assert value("box_accuracy", answer(given, "[0.0, 0.0, 0.5, 0.5]")) == score


OPTIONS = ("a cat", "a dog", "a red bird", "bird")


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("B", 1), ("b", 1), ("(B)", 1), ("B.", 1), ("B. a dog", 1), ("b) a dog", 1), ("**C**", 2),
        ("The answer is C", 2),
        ("Option D is right", 3), ("answer: (A)", 0), ("I think it is B.", 1), ("A dog", 1), ("a dog.", 1),
        ("It shows a cat", 0), ("a red bird", 2), ("bird", 3), ("a cat and a dog", None),
        ("B or C.", None), ("E", None),
        ("", None), ("a fish", None), ("The answer is a cat", 0),
    ],
)  # fmt: skip
def test_option_that_an_answer_names(text: str, option: int | None) -> None:
    assert chosen_option(text, OPTIONS) == option


def test_options_are_read_from_the_lines_of_a_question() -> None:
    assert options_in("Which?\nA. a cat\nB. a dog\nAnswer with the letter.") == ("a cat", "a dog")
    assert options_in("Which?\n(A) one\n(B) two") == ("one", "two")
    assert options_in("Which? A. one B. two") == ()
    assert options_in("B. one\nC. two") == ()


def test_multiple_choice_compares_options_and_not_letters() -> None:
    asked = [("B", "a dog"), ("a dog", "B"), ("A", "B"), ("?", "B")]
    assert value("multiple_choice", *(answer(given, right, options=OPTIONS) for given, right in asked)) == 0.5
    with pytest.raises(ValueError, match="sample k: multiple_choice needs options"):
        value("multiple_choice", answer("B", "B"))
    with pytest.raises(ValueError, match="sample k: the answer 'a fish' is none of the options"):
        value("multiple_choice", answer("B", "a fish", options=OPTIONS))


def test_circular_needs_every_rotation() -> None:
    two = ("x", "y")
    always_a = [answer("A", "A", options=two), answer("A", "B", options=two, key=f"k{ROTATION}1")]
    knows = [answer("A", "A", options=two, key="m"), answer("B", "B", options=two, key=f"m{ROTATION}1")]
    assert value("multiple_choice_circular", *always_a) == 0
    assert value("multiple_choice_circular", *always_a, *knows) == 0.5
    assert value("multiple_choice", *always_a, *knows) == 0.75


@pytest.mark.parametrize(
    ("text", "is_yes"),
    [("Yes", True), ("No, there is not.", False), ("There is not a dog", False), ("a dog. No cat", True), ("", True),
     ("Nothing", True), ("no", False)],
)  # fmt: skip
def test_pope_reads_the_first_sentence(text: str, is_yes: bool) -> None:
    assert says_yes(text) == is_yes


def test_pope_figures() -> None:
    # 3 right yes, 1 wrong yes, 4 right no, 2 wrong no
    pairs = [("yes", "yes")] * 3 + [("yes", "no")] + [("no", "no")] * 4 + [("no", "yes")] * 2
    found = figures("pope", *(answer(given, expected) for given, expected in pairs))
    assert found == pytest.approx({"": 0.7, "precision": 0.75, "recall": 0.6, "f1": 2 / 3, "yes_ratio": 0.4})
    assert figures("pope", answer("no", "yes"))["f1"] == 0
    with pytest.raises(ValueError, match="pope and mme score answers of yes or no"):
        value("pope", answer("yes", "red"))


def test_mme_points() -> None:
    def ask(kind: str, group: str, *given: str) -> list[Answer]:
        return [answer(text, right, kind=kind, group=group) for text, right in zip(given, ("yes", "no"), strict=True)]

    answers = [
        *ask("existence", "1", "Yes", "No"),
        *ask("existence", "2", "yes", "yes"),
        *ask("OCR", "1", "no", "maybe"),
    ]
    answers += ask("code_reasoning", "1", "Yes, it is.", "No.")
    # existence: 3 of 4 questions, 1 of 2 images; OCR: nothing; code: everything
    assert figures("mme", *answers) == pytest.approx({"": 325.0, "perception": 125.0, "cognition": 200.0})
    assert METRICS["mme"].measure(answers).by_category() == {
        "OCR": (1, 0.0), "code_reasoning": (1, 200.0), "existence": (2, 125.0),
    }  # fmt: skip


CAPTIONS = [
    ("A red car on a street.", ("a red car drives on the street", "Red car in the street!")),
    ("two dogs that play", ("Two dogs play in the snow", "dogs are playing", "A pair of dogs")),
    ("a man isn't here", ("a man is not here", "there's no one in the picture of a room")),
]


def test_captions_score_as_the_published_implementation() -> None:
    answers = [answer(given, texts[0], *texts, key=f"k{idx}") for idx, (given, texts) in enumerate(CAPTIONS)]
    references = {idx: [tokenize_caption(text) for text in texts] for idx, (_, texts) in enumerate(CAPTIONS)}
    given = {idx: [tokenize_caption(text)] for idx, (text, _) in enumerate(CAPTIONS)}
    assert value("cider", *answers) == pytest.approx(Cider().compute_score(references, given)[0])
    assert value("rouge", *answers) == pytest.approx(Rouge().compute_score(references, given)[0])
    corpus, each = Bleu(4).compute_score(references, given, verbose=0)
    assert value("bleu", *answers) == pytest.approx(corpus[3])
    assert METRICS["bleu"].measure(answers).scores == pytest.approx(np.array(each[3]))
    assert value("bleu", answer("a red car on a street", "a red car on a street")) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "words"),
    [("A man, riding a horse.", "a man riding a horse"), ("It isn't Tom's t-shirt!", "it is n't tom 's t-shirt")],
)
def test_captions_are_cut_into_words(text: str, words: str) -> None:
    assert tokenize_caption(text) == words


def test_perplexity_and_loss_weigh_tokens() -> None:
    answers = [answer("", loss=2.0, num_targets=1), answer("", loss=1.0, num_targets=5), answer("", turn=1)]
    assert value("loss", *answers) == pytest.approx(0.5)
    assert value("perplexity", *answers) == pytest.approx(math.exp(0.5))
    assert len(METRICS["loss"].measure(answers).units) == 2
