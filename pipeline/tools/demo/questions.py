"""Puts scenes into words: dense captions, and questions with one-word answers whose answers are balanced.

Every question kind lists all questions that can be asked about the given scenes; one is then chosen evenly over the
*answers*, so that guessing the commonest answer does not pay.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

from pipeline.tools.demo.scenes import COLORS, SHAPES, Combination, Scene, Thing

QuestionKind: TypeAlias = Literal["color", "shape", "count", "existence", "which_image"]
QUESTION_KINDS: tuple[QuestionKind, ...] = get_args(QuestionKind)

ORDINALS = ("first", "second", "third")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Question(NamedTuple):
    """A question with its one-word answer."""

    kind: QuestionKind
    text: str
    answer: str


class _Draft(NamedTuple):
    """A question that still has to be put into words."""

    kind: QuestionKind
    subject: str
    """What is asked about: `circle`, `red objects`, `a red circle`."""
    where: str
    """` in the second image`, or nothing when there is only one."""
    answer: str


class _View(NamedTuple):
    """Objects that a question is about, and the words for it (` in the second image`, or nothing)."""

    things: tuple[Thing, ...]
    where: str


# The first wording of each kind is the only one that the demo's language model has been taught before.
_WORDINGS: dict[QuestionKind, tuple[str, ...]] = {
    "color": (
        "What color is the {subject}{where}?",
        "Name the color of the {subject}{where}.",
        "Which color does the {subject}{where} have?",
    ),
    "shape": (
        "What shape is the {subject}{where}?",
        "Name the shape of the {subject}{where}.",
        "Which shape does the {subject}{where} have?",
    ),
    "count": (
        "How many {subject} are there{where}?",
        "Count the {subject}{where}.",
        "What is the number of {subject}{where}?",
    ),
    "existence": (
        "Is there {subject}{where}?",
        "Can you see {subject}{where}?",
        "True or not: {subject} is shown{where}.",
    ),
    "which_image": (
        "Which image shows {subject}?",
        "In which image is {subject}?",
        "Find {subject}: which image is it in?",
    ),
}


def caption(rng: random.Random, scene: Scene) -> str:
    """Name every thing in reading order with colour, shape and region; the opening words vary."""
    phrases = [f"{with_article(f'{thing.color} {thing.shape}')} {place(thing)}" for thing in scene.things]
    listed = ", ".join(phrases)
    count = len(phrases)
    plural = "s" if count > 1 else ""
    return rng.choice((f"{listed}.", f"{NUMBERS[count]} object{plural}: {listed}."))


def place(thing: Thing) -> str:
    """Say where a thing is: `in the middle`, `at the top left`."""
    return "in the middle" if thing.region == "middle" else f"at the {thing.region}"


def with_article(noun: str) -> str:
    """Put `a` or `an` before a noun phrase."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def ask(rng: random.Random, scenes: Sequence[Scene], max_questions: int, *, one_wording: bool) -> list[Question]:
    """Ask up to `max_questions` different questions, of kinds as varied as the scenes allow.

    Args:
        rng: source of all randomness.
        scenes: the images, in order.
        max_questions: limit.
        one_wording: always use the first wording of a kind, rather than any.
    """
    kinds = [kind for kind in QUESTION_KINDS if kind != "which_image" or len(scenes) > 1]
    rng.shuffle(kinds)
    drafts: list[_Draft] = []
    for turn in range(max_questions):
        candidates = [draft for draft in _CANDIDATES[kinds[turn % len(kinds)]](scenes) if draft not in drafts]
        if candidates:
            drafts.append(_balanced_choice(rng, candidates))
    return [_put_into_words(rng, draft, one_wording) for draft in drafts]


def _balanced_choice(rng: random.Random, candidates: Sequence[_Draft]) -> _Draft:
    answer = rng.choice(sorted({draft.answer for draft in candidates}))
    return rng.choice([draft for draft in candidates if draft.answer == answer])


def _put_into_words(rng: random.Random, draft: _Draft, one_wording: bool) -> Question:
    wordings = _WORDINGS[draft.kind]
    wording = wordings[0] if one_wording else rng.choice(wordings)
    return Question(draft.kind, wording.format(subject=draft.subject, where=draft.where), draft.answer)


def _views(scenes: Sequence[Scene]) -> list[_View]:
    """Each image on its own."""
    if len(scenes) == 1:
        return [_View(scenes[0].things, "")]
    return [_View(scene.things, f" in the {ORDINALS[k]} image") for k, scene in enumerate(scenes)]


def _views_and_total(scenes: Sequence[Scene]) -> list[_View]:
    """Each image on its own and, if there are several, all of them together."""
    views = _views(scenes)
    if len(scenes) > 1:
        views.append(_View(tuple(thing for scene in scenes for thing in scene.things), " in all images"))
    return views


def _color_questions(scenes: Sequence[Scene]) -> Iterator[_Draft]:
    for things, where in _views(scenes):
        for thing in things:
            if _is_unique([other.shape for other in things], thing.shape):
                yield _Draft("color", thing.shape, where, thing.color)
            if _is_unique([other.region for other in things], thing.region):
                yield _Draft("color", f"object {place(thing)}", where, thing.color)


def _shape_questions(scenes: Sequence[Scene]) -> Iterator[_Draft]:
    for things, where in _views(scenes):
        for thing in things:
            if _is_unique([other.color for other in things], thing.color):
                yield _Draft("shape", f"{thing.color} object", where, thing.shape)
            if _is_unique([other.region for other in things], thing.region):
                yield _Draft("shape", f"object {place(thing)}", where, thing.shape)


def _count_questions(scenes: Sequence[Scene]) -> Iterator[_Draft]:
    for things, where in _views_and_total(scenes):
        yield _Draft("count", "objects", where, NUMBERS[len(things)])
        for color in COLORS:
            number = sum(thing.color == color for thing in things)
            yield _Draft("count", f"{color} objects", where, NUMBERS[number])
        for shape in SHAPES:
            number = sum(thing.shape == shape for thing in things)
            yield _Draft("count", _plural(shape), where, NUMBERS[number])


def _existence_questions(scenes: Sequence[Scene]) -> Iterator[_Draft]:
    """Ask for what is there, and for what nearly is: the right colour or the right shape, but not both."""
    for things, where in _views(scenes):
        present = sorted({(thing.color, thing.shape) for thing in things})
        for color, shape in present:
            yield _Draft("existence", with_article(f"{color} {shape}"), where, "yes")
        for color, shape in _near_misses(present):
            yield _Draft("existence", with_article(f"{color} {shape}"), where, "no")


def _near_misses(present: Sequence[Combination]) -> list[Combination]:
    swapped = {(color, shape) for color, _ in present for _, shape in present}
    recolored = {(color, shape) for color in COLORS for _, shape in present}
    reshaped = {(color, shape) for color, _ in present for shape in SHAPES}
    return sorted((swapped | recolored | reshaped) - set(present))


def _which_image_questions(scenes: Sequence[Scene]) -> Iterator[_Draft]:
    """Ask for the only image that shows something."""
    shown = [{text for thing in scene.things for text in _descriptions(thing)} for scene in scenes]
    for k, descriptions in enumerate(shown):
        elsewhere = set().union(*shown[:k], *shown[k + 1 :])
        for description in sorted(descriptions - elsewhere):
            yield _Draft("which_image", description, "", ORDINALS[k])


def _descriptions(thing: Thing) -> tuple[str, str, str]:
    return (
        with_article(f"{thing.color} {thing.shape}"),
        with_article(f"{thing.color} object"),
        with_article(thing.shape),
    )


def _is_unique(values: Sequence[str], value: str) -> bool:
    return list(values).count(value) == 1


def _plural(noun: str) -> str:
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


_CANDIDATES: dict[QuestionKind, Callable[[Sequence[Scene]], Iterator[_Draft]]] = {
    "color": _color_questions,
    "shape": _shape_questions,
    "count": _count_questions,
    "existence": _existence_questions,
    "which_image": _which_image_questions,
}
