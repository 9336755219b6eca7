"""Answers and the figures drawn from them: accuracy over all, per kind of question, and what guessing would reach."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from pipeline.evaluation.questions import normalize_answer


class Answer(NamedTuple):
    """One question put to the model, with the conversation before it as in the data."""

    key: str
    """Sample."""
    turn: int
    """Number of the question in its conversation, from 0."""
    kind: str
    num_images: int
    question: str
    expected: str
    given: str
    references: tuple[str, ...] = ()
    """What several people answered; empty where `expected` is the only reference."""
    options: tuple[str, ...] = ()
    """Of a multiple-choice question, in the order in which they were listed."""
    group: str = ""
    """Questions that are scored together, e.g. those about one image."""
    loss: float = 0.0
    """Cross-entropy of the sample's supervised tokens, nats; on the sample's first answer only."""
    num_targets: int = 0
    """Those tokens; likewise."""

    @property
    def accepted(self) -> tuple[str, ...]:
        """All references."""
        return self.references or (self.expected,)

    @property
    def is_right(self) -> bool:
        """Whether both answers are equal once normalised."""
        return normalize_answer(self.given) == normalize_answer(self.expected)


class Score(NamedTuple):
    """Result over a group of answers."""

    num_answers: int
    accuracy: float
    """Share of right answers, 0 to 1."""
    majority: float
    """Share that always giving the group's commonest expected answer would get right, 0 to 1."""


class Evaluation(NamedTuple):
    """Everything measured on one model."""

    loss: float
    """Cross-entropy per supervised token, nats."""
    num_targets: int
    """Supervised tokens the loss was averaged over."""
    answers: tuple[Answer, ...]

    @property
    def about_images(self) -> tuple[Answer, ...]:
        """Answers of samples that have images."""
        return tuple(answer for answer in self.answers if answer.num_images)

    @property
    def overall(self) -> Score:
        """Score over the samples with images; guessing means guessing per kind of question."""
        return score(self.about_images)

    def by_kind(self) -> dict[str, Score]:
        """Score per kind of question, over the samples with images."""
        return _grouped(self.about_images, lambda answer: answer.kind)

    def by_images(self) -> dict[str, Score]:
        """Score of samples without, with one and with several images."""
        return _grouped(self.answers, lambda answer: images_group(answer.num_images))


def images_group(num_images: int) -> str:
    """Name the group of a sample by how many images it has."""
    return ("text only", "one image", "several images")[min(num_images, 2)]


def score(answers: Sequence[Answer]) -> Score:
    """Score a group of answers.

    Raises:
        ValueError: there are none.
    """
    if not answers:
        raise ValueError("no answers to score; evaluate at least one sample that has images and an assistant turn")
    right = sum(answer.is_right for answer in answers)
    expected: dict[str, Counter[str]] = {}
    for answer in answers:
        expected.setdefault(answer.kind, Counter())[normalize_answer(answer.expected)] += 1
    guessed = sum(counts.most_common(1)[0][1] for counts in expected.values())
    return Score(len(answers), right / len(answers), guessed / len(answers))


def _grouped(answers: Iterable[Answer], group_of: Callable[[Answer], str]) -> dict[str, Score]:
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(group_of(answer), []).append(answer)
    return {name: score(members) for name, members in sorted(groups.items())}
