"""Multiple choice: which option an answer names, and the circular form, where all rotations must be right (MMBench)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.evaluation.metrics.measured import Measured, Unit, mean_of
from pipeline.evaluation.questions import normalize_answer
from pipeline.evaluation.scores import Answer

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_FIRST = re.compile(r"^[\s(\[*\"']*([A-Za-z])(?:[.:;,)\]]|[\s.:)\]*\"']*$)")
_NAMED = re.compile(
    r"\b(?:[Aa]nswer|[Oo]ption|[Cc]hoice)\b(?:\s+(?:is|would be|should be))?\s*:?\s*[(\[*\"']*([A-Z])(?![\w'])"
)
_LONE = re.compile(r"(?<![\w'])(?:[B-Z](?![\w'])|A(?=[).,:;]|\s*$))")
"""A capital on its own; "A" also begins sentences, so only before a mark or at the end."""
_LISTED = re.compile(r"^\s*\(?([A-Z])[.):]\s+(.+?)\s*$", re.MULTILINE)


def options_in(question: str) -> tuple[str, ...]:
    """Read options that a question lists in lines "A. text", "(B) text" or "C: text"; empty without such a list."""
    found = _LISTED.findall(question)
    letters = "".join(letter for letter, _ in found)
    return tuple(text for _, text in found) if len(found) > 1 and LETTERS.startswith(letters) else ()


def chosen_option(text: str, options: Sequence[str]) -> int | None:
    """Return which option an answer names, from 0; None if it names none, or several.

    In this order: the letter at its beginning ("B", "(b) ...", "B: a cat"); the letter after "answer is", "option",
    "choice"; the only letter of an option that is written on its own; the only option whose text it is or contains.
    """
    text = text.strip()
    first = _FIRST.match(text)
    if first is not None:
        return _index(first.group(1), options)
    named = _NAMED.search(text)
    if named is not None and _index(named.group(1), options) is not None:
        return _index(named.group(1), options)
    alone = {letter for letter in _LONE.findall(text) if _index(letter, options) is not None}
    if len(alone) == 1:
        return _index(alone.pop(), options)
    said = normalize_answer(text)
    equal = [idx for idx, option in enumerate(options) if normalize_answer(option) == said]
    inside = [idx for idx, option in enumerate(options) if _contains(said, normalize_answer(option))]
    candidates = equal or inside
    return candidates[0] if len(candidates) == 1 else None


def right_option(answer: Answer) -> int:
    """Return which option is right, from 0.

    Raises:
        ValueError: the sample has no options, or its answer is none of them.
    """
    options = answer.options
    if len(options) < 2:
        raise ValueError(
            f"sample {answer.key}: multiple_choice needs options, in the field `options` of its JSON or as lines "
            "`A. text` of the question; found none"
        )
    right = chosen_option(answer.expected, options)
    if right is None:
        raise ValueError(
            f"sample {answer.key}: the answer {answer.expected!r} is none of the options {list(options)}; give its "
            "letter or its text"
        )
    return right


def multiple_choice(answer: Answer) -> float:
    """Return 1 if the answer names the right option."""
    return float(chosen_option(answer.given, answer.options) == right_option(answer))


def measure_circular(answers: Sequence[Answer]) -> Measured:
    """Score a question as right if it is in every rotation of its options that was asked."""
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(answer.key.partition(ROTATION)[0] + f"/{answer.turn}", []).append(answer)
    units = [Unit(name, members[0].kind) for name, members in groups.items()]
    return mean_of(units, [min(multiple_choice(answer) for answer in members) for members in groups.values()])


ROTATION = "#rotated-"
"""In the key of a question whose options were rotated, before by how many places."""


def _index(letter: str, options: Sequence[str]) -> int | None:
    place = LETTERS.index(letter.upper())
    return place if place < len(options) else None


def _contains(text: str, option: str) -> bool:
    return bool(option) and re.search(rf"(?<!\w){re.escape(option)}(?!\w)", text) is not None
