"""Every score next to what is reached without seeing: blanked images, another sample's images, the commonest answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from pipeline.assembly.folder import OpenedModel
from pipeline.evaluation.intervals import Interval, bootstrap
from pipeline.evaluation.metrics.choice import ROTATION
from pipeline.evaluation.metrics.measured import Metric
from pipeline.evaluation.questions import EvaluationSample, normalize_answer
from pipeline.evaluation.rotation import rotations, with_listed_options
from pipeline.evaluation.run import EvaluationSettings, Images, evaluate
from pipeline.evaluation.scores import Answer

BLIND: Mapping[str, Images] = {"blank": "blanked", "shuffled": "shuffled"}
"""Name of a figure in reports -> what the images are replaced by."""
CIRCULAR = "multiple_choice_circular"


class Figure(NamedTuple):
    """A metric's value and how sure it is."""

    value: float
    interval: Interval


class Scored(NamedTuple):
    """One metric on one set of samples."""

    metric: Metric
    seeing: Figure
    blind: dict[str, Figure]
    """Under `blank`, `shuffled`, and `majority` where answers are read."""
    further: dict[str, float]
    """Figures that belong to the metric, e.g. `f1`."""
    by_category: dict[str, tuple[int, float]]
    """Category -> number of questions, value."""
    num_units: int

    @property
    def may_be_blind(self) -> bool:
        """Whether the interval overlaps that of a blind baseline."""
        return any(self.seeing.interval.overlaps(figure.interval) for figure in self.blind.values())

    def flat(self) -> dict[str, float]:
        """Return every figure under a name that begins with the metric's."""
        name = self.metric.name
        found = {name: self.seeing.value}
        found |= {f"{name}_{blind}": figure.value for blind, figure in self.blind.items()}
        return found | {f"{name}_{further}": value for further, value in self.further.items()}

    def to_json(self) -> dict[str, Any]:
        """Return all there is to tell."""
        return {
            "value": self.seeing.value,
            "interval": list(self.seeing.interval),
            "direction": self.metric.direction,
            "blind": {name: {"value": one.value, "interval": list(one.interval)} for name, one in self.blind.items()},
            "may_be_blind": self.may_be_blind,
            "figures": self.further,
            "by_category": {name: {"number": num, "value": value} for name, (num, value) in self.by_category.items()},
            "number": self.num_units,
        }


class SetResult(NamedTuple):
    """A set of samples, evaluated."""

    num_samples: int
    scored: tuple[Scored, ...]
    answers: dict[str, tuple[Answer, ...]]
    """Under `seeing`, `blank` and `shuffled`."""

    def flat(self, *, intervals: bool = False) -> dict[str, float]:
        """Return every figure of every metric, and the ends of their intervals if asked for."""
        found = {name: value for one in self.scored for name, value in one.flat().items()}
        for one in self.scored if intervals else ():
            found[f"{one.metric.name}_low"], found[f"{one.metric.name}_high"] = one.seeing.interval
        return found


def check_metrics(samples: Sequence[EvaluationSample], metrics: Sequence[Metric]) -> None:
    """See whether samples have what metrics need, before anything is computed.

    Raises:
        ValueError: they do not; names the sample.
    """
    questions = [
        Answer(entry.sample.key, turn, kind, len(entry.sample.images), question, expected, "", *entry[2:])
        for entry in with_listed_options(samples)
        for turn, (kind, (question, expected)) in enumerate(zip(entry.kinds, entry.asked, strict=True))
    ]
    for metric in metrics:
        metric.measure(questions)


def evaluate_set(
    opened: OpenedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[EvaluationSample],
    metrics: Sequence[Metric],
    settings: EvaluationSettings,
    blind: Sequence[str] = tuple(BLIND),
) -> SetResult:
    """Measure a model on samples, seeing and blind.

    Args:
        opened: model in evaluation mode, and its encoder.
        tokenizer: of the model.
        samples: at least one.
        metrics: at least one.
        settings: how to ask.
        blind: which replacements of the images, of `BLIND`.

    Raises:
        DataError: a sample cannot be used; names it.
        ValueError: no samples, or they lack what a metric needs.
    """
    asked = prepare_questions(samples, metrics)
    answers = {
        view: evaluate(opened, tokenizer, asked, settings_of(settings, view, metrics)).answers
        for view in ("seeing", *blind)
    }
    return measure_views(len(samples), metrics, answers)


def prepare_questions(samples: Sequence[EvaluationSample], metrics: Sequence[Metric]) -> list[EvaluationSample]:
    """Return what is asked: the samples, and the rotations of their options where a metric needs them."""
    asked = with_listed_options(samples)
    if any(metric.name == CIRCULAR for metric in metrics):
        asked = [one for entry in asked for one in (entry, *rotations(entry))]
    return asked


def settings_of(settings: EvaluationSettings, view: str, metrics: Sequence[Metric]) -> EvaluationSettings:
    """Return how a view, `seeing` or one of `BLIND`, is asked; answers are written only if a metric reads them."""
    needs_answers = any(metric.reads_answers for metric in metrics)
    return replace(settings, images=BLIND.get(view, "shown"), answers=needs_answers)


def measure_views(num_samples: int, metrics: Sequence[Metric], answers: Mapping[str, Sequence[Answer]]) -> SetResult:
    """Score what was answered in every view."""
    scored = tuple(score(metric, answers) for metric in metrics)
    return SetResult(num_samples, scored, {view: tuple(given) for view, given in answers.items()})


def score(metric: Metric, answers: Mapping[str, Sequence[Answer]]) -> Scored:
    """Score the answers of `seeing`, and those of every blind run besides."""
    own = {name: _own_answers(metric, given) for name, given in answers.items()}
    measured = metric.measure(own["seeing"])
    blind = {name: metric.measure(given) for name, given in own.items() if name != "seeing"}
    if metric.reads_answers:
        blind["majority"] = metric.measure(majority_answers(own["seeing"]))
    figures = measured.figures()
    return Scored(
        metric,
        Figure(figures.pop(""), bootstrap(measured)),
        {name: Figure(one.figures()[""], bootstrap(one)) for name, one in blind.items()},
        figures,
        measured.by_category(),
        len(measured.units),
    )


def majority_answers(answers: Sequence[Answer]) -> list[Answer]:
    """Return the same questions, each answered with the commonest reference of its kind."""
    counts: dict[str, Counter[str]] = {}
    for answer in answers:
        counts.setdefault(answer.kind, Counter())[normalize_answer(answer.expected)] += 1
    return [answer._replace(given=counts[answer.kind].most_common(1)[0][0]) for answer in answers]


def _own_answers(metric: Metric, answers: Sequence[Answer]) -> list[Answer]:
    """Leave rotated questions to the metric that asked for them."""
    return [answer for answer in answers if metric.name == CIRCULAR or ROTATION not in answer.key]
