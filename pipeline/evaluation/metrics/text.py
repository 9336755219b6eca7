"""Metrics of short answers: exact match, relaxed accuracy (ChartQA), ANLS (DocVQA) and boxes (RefCOCO)."""

from __future__ import annotations

import re

from pipeline.evaluation.questions import normalize_answer
from pipeline.evaluation.scores import Answer

_TOLERANCE = 0.05
"""Of a number, relative; ChartQA (Masry et al. 2022)."""
_OVERLAP = 0.5
_BOX = re.compile(r"-?\d+(?:\.\d+)?")
_ANLS_THRESHOLD = 0.5
"""Similarities below it count as 0; Biten et al. 2019."""


def exact_match(answer: Answer) -> float:
    """Return 1 if the answer equals a reference: lower case, single spaces, without a final full stop."""
    return float(normalize_answer(answer.given) in {normalize_answer(text) for text in answer.accepted})


def relaxed_accuracy(answer: Answer) -> float:
    """Return 1 if a number is within 5 % of a reference, or a text equals it in lower case (ChartQA)."""
    return float(any(_is_close(answer.given.strip(), text.strip()) for text in answer.accepted))


def anls(answer: Answer) -> float:
    """Return the normalised Levenshtein similarity to the nearest reference, 0 below one half (DocVQA)."""
    best = max(_similarity(answer.given, text) for text in answer.accepted)
    return best if best >= _ANLS_THRESHOLD else 0.0


def box_accuracy(answer: Answer) -> float:
    """Return 1 if the box [x1, y1, x2, y2] overlaps that of the reference by half of their union (RefCOCO).

    Raises:
        ValueError: the reference is not a box.
    """
    given, expected = (_BOX.findall(text)[:4] for text in (answer.given, answer.expected))
    if len(expected) < 4:
        raise ValueError(
            f"sample {answer.key}: box_accuracy needs a reference [x1, y1, x2, y2], not {answer.expected!r}"
        )
    return float(len(given) == 4 and _overlap([*map(float, given)], [*map(float, expected)]) >= _OVERLAP)


def _overlap(first: list[float], second: list[float]) -> float:
    """Intersection over union."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    common = max(0.0, width) * max(0.0, height)
    areas = sum(max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1]) for box in (first, second))
    return common / (areas - common) if areas > common else 0.0


def levenshtein(first: str, second: str) -> int:
    """Return how many letters must be put in, taken out or replaced to make one text the other."""
    row = list(range(len(second) + 1))
    for idx, letter in enumerate(first, 1):
        corner, row[0] = row[0], idx
        for place, other in enumerate(second, 1):
            corner, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, corner + (letter != other))
    return row[-1]


def _is_close(given: str, expected: str) -> bool:
    found, wanted = _number(given), _number(expected)
    if found is None or not wanted:  # a relative error from zero is not defined: texts decide
        return given.lower() == expected.lower()
    return abs(found - wanted) / abs(wanted) <= _TOLERANCE


def _number(text: str) -> float | None:
    """Read a number, or a percentage as its share."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None


def _similarity(given: str, expected: str) -> float:
    first, second = (" ".join(text.strip().lower().split()) for text in (given, expected))
    longest = max(len(first), len(second))
    return 1.0 - levenshtein(first, second) / longest if longest else 1.0
