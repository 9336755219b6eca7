"""Yes and no: accuracy, precision, recall, F1 and yes-ratio (POPE), and points of question pairs (MME)."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from pipeline.evaluation.metrics.measured import Floats, Measured, Unit, ratio, unit_of
from pipeline.evaluation.scores import Answer

MME_PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
MME_COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def says_yes(text: str) -> bool:
    """Read an answer as POPE does: its first sentence says no if it has the word no or not, else it says yes."""
    words = re.sub(r"[^\w\s]", " ", text.partition(".")[0].lower()).split()
    return not {"no", "not"} & set(words)


def measure_pope(answers: Sequence[Answer]) -> Measured:
    """Count right and wrong answers of yes and of no; positive means yes.

    Raises:
        ValueError: a reference says neither yes nor no.
    """
    expected = np.array([_expects_yes(answer) for answer in answers])
    given = np.array([says_yes(answer.given) for answer in answers])
    cells = [expected & given, ~expected & given, ~expected & ~given, expected & ~given]
    totals = np.stack(cells, axis=1).astype(np.float64)
    return Measured(tuple(map(unit_of, answers)), totals, _pope_figures, (expected == given).astype(np.float64))


def _pope_figures(sums: Floats) -> dict[str, Floats]:
    right_yes, wrong_yes, right_no, wrong_no = (sums[..., idx] for idx in range(4))
    total = sums.sum(axis=-1)
    return {
        "": ratio(right_yes + right_no, total),
        "precision": ratio(right_yes, right_yes + wrong_yes),
        "recall": ratio(right_yes, right_yes + wrong_no),
        "f1": ratio(2 * right_yes, 2 * right_yes + wrong_yes + wrong_no),
        "yes_ratio": ratio(right_yes + wrong_yes, total),
    }


def measure_mme(answers: Sequence[Answer]) -> Measured:
    """Score the two questions of each image together: points = 100 * accuracy + 100 * share of images with both right.

    Points of the categories add up. Answers of the same group and category belong to the same image.

    Raises:
        ValueError: a reference says neither yes nor no.
    """
    pairs: dict[tuple[str, str], list[float]] = {}
    for answer in answers:
        is_right = _mme_reading(answer.given) == ("yes" if _expects_yes(answer) else "no")
        pairs.setdefault((answer.kind, answer.group or answer.key), []).append(float(is_right))
    categories = sorted({category for category, _ in pairs})
    totals = np.zeros((len(pairs), len(categories) * 4))
    for row, ((category, _), rights) in enumerate(pairs.items()):
        start = 4 * categories.index(category)
        totals[row, start : start + 4] = sum(rights), len(rights), min(rights), 1

    def figures(sums: Floats) -> dict[str, Floats]:
        cells = sums.reshape(*sums.shape[:-1], len(categories), 4)
        points = 100 * (ratio(cells[..., 0], cells[..., 1]) + ratio(cells[..., 2], cells[..., 3]))
        parts = {"perception": MME_PERCEPTION, "cognition": MME_COGNITION}
        chosen = {name: [idx for idx, own in enumerate(categories) if own in of] for name, of in parts.items()}
        return {"": points.sum(axis=-1)} | {
            name: points[..., places].sum(axis=-1) for name, places in chosen.items() if places
        }

    units = tuple(Unit(f"{category}/{name}", category) for category, name in pairs)
    scores = np.array([sum(rights) / len(rights) + min(rights) for rights in pairs.values()])
    return Measured(units, totals, figures, scores)


def _mme_reading(text: str) -> str:
    """Read an answer as MME does: yes or no among its first four letters."""
    beginning = text.strip().lower()[:4]
    return "yes" if "yes" in beginning else "no" if "no" in beginning else "other"


def _expects_yes(answer: Answer) -> bool:
    expected = answer.expected.strip().lower().rstrip(".")
    if expected not in ("yes", "no"):
        raise ValueError(
            f"sample {answer.key}: pope and mme score answers of yes or no, but the reference is {answer.expected!r}; "
            "use exact_match"
        )
    return expected == "yes"
