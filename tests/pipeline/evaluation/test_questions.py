"""Question kinds, normalised answers, and reading samples for evaluation."""

import json
from pathlib import Path

import pytest

from pipeline.evaluation.questions import (
    normalize_answer,
    question_kind,
    questions_and_answers,
    read_evaluation_samples,
)
from pipeline.index.build import build_index
from pipeline.index.index import ShardIndex
from pipeline.samples.prompt.conversation import Conversation, Turn
from pipeline.shards.writer import write_shards


def build(folder: Path, *records: dict[str, object]) -> ShardIndex:
    samples = [{"__key__": f"s{number:03d}", "json": json.dumps(record)} for number, record in enumerate(records)]
    return build_index(write_shards(samples, folder / "data-%03d.tar"), folder / "index")


def talk(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [
        {"from": speaker, "value": text} for pair in pairs for speaker, text in zip(("human", "gpt"), pair, strict=True)
    ]


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("<image>\nHow many red shapes are there?", "count"),
        ("First image: <image>\nSecond image: <image>\nWhich image shows a star?", "which_image"),
        ("What colour is it?", "color"),
        ("Name the shape of the blue object.", "shape"),
        ("Is there a black triangle in any of the boxes?", "existence"),
        ("Is this statement true or false? There are two towers.", "statement"),
        ("What is the largest number of objects in one box?", "count"),
        ("Tell me a story.", "other"),
    ],
)
def test_question_kind_follows_the_wording_of_the_last_line(question: str, kind: str) -> None:
    assert question_kind(question) == kind


@pytest.mark.parametrize(
    ("text", "normal"),
    [("Red.", "red"), ("  two  crosses . ", "two crosses"), ("No", "no"), ("3.5", "3.5"), ("", "")],
)
def test_normalize_answer_ignores_case_spaces_and_final_stop(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


def test_questions_and_answers_leave_the_system_turn_out() -> None:
    turns = (Turn("system", ("be brief",)), Turn("user", ("a?",)), Turn("assistant", ("b",)))
    assert questions_and_answers(Conversation(turns)) == [("a?", "b")]


def test_read_evaluation_samples_takes_given_kinds_and_guesses_the_others(tmp_path: Path) -> None:
    index = build(
        tmp_path,
        {"conversations": talk(("How many?", "two"), ("Where?", "here")), "kinds": ["alpha", "beta"]},
        {"conversations": talk(("How many?", "two"), ("Is it red?", "no"))},
        {"conversations": talk(("What color?", "red"))},
    )
    kinds = [entry.kinds for entry in read_evaluation_samples(index)]
    assert kinds == [("alpha", "beta"), ("count", "existence"), ("color",)]
    assert [entry.sample.key for entry in read_evaluation_samples(index, max_samples=2)] == ["s000", "s001"]


def test_read_evaluation_samples_with_too_few_kinds_names_the_sample(tmp_path: Path) -> None:
    index = build(tmp_path, {"conversations": talk(("a", "b"), ("c", "d")), "kinds": ["alpha"]})
    with pytest.raises(ValueError, match=r"key s000: `kinds` names 1 question kinds .* has 2 answers"):
        read_evaluation_samples(index)
