"""The demo's figures as one table: what was measured on the held-out samples at each point of the training."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from pipeline.evaluation.scores import Evaluation, Score, score


class Point(NamedTuple):
    """One evaluation and when it was made."""

    name: str
    evaluation: Evaluation


class Row(NamedTuple):
    """One line of the table, ready to be shown."""

    label: str
    cells: tuple[str, ...]
    """One per point, then what guessing reaches; empty where there is no figure."""
    is_headline: bool = False


GUESSING = "guessing"
"""Head of the last column: always giving the commonest answer to a kind of question."""


def table_rows(points: Sequence[Point], groups: Mapping[str, Collection[str]]) -> list[Row]:
    """Lay out losses and accuracies, a column per point; all points have answered the same questions.

    Args:
        points: at least one.
        groups: further groups of samples to score on their own: label, and the keys of the samples.

    Raises:
        ValueError: no point.
    """
    if not points:
        raise ValueError("no evaluation to show")
    losses = tuple(f"{point.evaluation.loss:.3f}" for point in points)
    overall = [point.evaluation.overall for point in points]
    rows = [
        Row("held-out loss", (*losses, "")),
        _row("all image questions", overall, is_headline=True),
    ]
    for grouped in (
        [point.evaluation.by_kind() for point in points],
        [point.evaluation.by_images() for point in points],
    ):
        rows += [_row(name.replace("_", " "), [scores[name] for scores in grouped]) for name in grouped[0]]
    for label, keys in groups.items():
        chosen = [[answer for answer in point.evaluation.about_images if answer.key in keys] for point in points]
        if chosen[0]:
            rows.append(_row(label, [score(answers) for answers in chosen]))
    return rows


def flat_metrics(evaluation: Evaluation) -> dict[str, float]:
    """Return the figures of one point under names for a tracker, e.g. `accuracy/which_image`."""
    metrics = {"loss": evaluation.loss, "accuracy": evaluation.overall.accuracy}
    for name, group in {**evaluation.by_kind(), **evaluation.by_images()}.items():
        metrics[f"accuracy/{name.replace(' ', '_')}"] = group.accuracy
    return metrics


def _row(label: str, scores: Sequence[Score], *, is_headline: bool = False) -> Row:
    cells = [*(entry.accuracy for entry in scores), scores[0].majority]
    label = f"{label} ({scores[0].num_answers})"
    return Row(label, tuple(f"{cell:.1%}" for cell in cells), is_headline)
