"""Config section `evaluation`: what is measured while training and at its end, on which samples, and where."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config.section import Free, Section
from pipeline.storage.urls import check_shard_urls

MetricName = Literal[
    "exact_match", "vqa_accuracy", "multiple_choice", "multiple_choice_circular", "pope", "mme", "relaxed_accuracy",
    "anls", "box_accuracy", "cider", "bleu", "rouge", "perplexity", "loss",
]  # fmt: skip
METRIC_NAMES: tuple[str, ...] = MetricName.__args__  # type: ignore[attr-defined]
BENCHMARK_NAMES = (
    "vqav2", "gqa", "textvqa", "docvqa", "chartqa", "ai2d", "pope", "mme", "mmbench", "scienceqa", "mmmu", "seed",
    "refcoco", "coco_captions", "nocaps",
)  # fmt: skip
LOWER_IS_BETTER = frozenset({"perplexity", "loss"})
SetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class BestMetric(NamedTuple):
    """What decides which checkpoints are the best."""

    name: str
    """As in metrics.jsonl, e.g. eval/exact_match."""
    mode: Literal["max", "min"]

    def rank(self, value: float) -> float:
        """Return a number that is lower for better values."""
        return value if self.mode == "min" else -value


class EvaluationSetConfig(Section):
    """One named set of held-out samples."""

    shards: Annotated[tuple[str, ...], Free]
    """Shard paths or URLs, as in `data.shards`."""
    metrics: Annotated[tuple[MetricName, ...], Free, Field(min_length=1)] = ("exact_match",)
    """What is measured; the loss always is."""
    max_samples: Annotated[int | None, Free, Field(ge=1)] = None
    """Use no more than the first so many usable samples; null for all."""

    @field_validator("shards")
    @classmethod
    def _check_shards(cls, shards: tuple[str, ...]) -> tuple[str, ...]:
        return check_shard_urls(shards)


class EvaluationConfig(Section):
    """Evaluation while training, on held-out samples; off without shards or sets."""

    shards: Annotated[tuple[str, ...], Free] = ()
    """Held-out shards of the only set; for several sets use `sets`."""
    metrics: Annotated[tuple[MetricName, ...], Free, Field(min_length=1)] = ("exact_match",)
    """What is measured on `shards`; the loss always is."""
    max_samples: Annotated[int | None, Free, Field(ge=1)] = None
    """Use no more than the first so many usable samples of `shards`; null for all."""
    held_out: Annotated[bool, Free] = False
    """Evaluate on the samples that `data.held_out` keeps from training; `metrics` and `max_samples` apply."""
    sets: Annotated[dict[SetName, EvaluationSetConfig], Free] = Field(default_factory=dict)
    """Several sets: name -> {shards, metrics, max_samples}; figures are named eval/NAME/METRIC."""
    every_steps: Annotated[int | None, Free, Field(ge=1)] = None
    """Evaluate after every so many optimizer steps; null evaluates at the end only."""
    at_end: Annotated[bool, Free] = True
    """Evaluate after the last step."""
    where: Annotated[Literal["trainers"], Free] = "trainers"
    """Who evaluates: `trainers`, between two steps."""
    batch_size: Annotated[int, Free, Field(ge=1)] = 32
    """Questions answered at the same time, per worker."""
    max_new_tokens: Annotated[int, Free, Field(ge=1)] = 16
    """Longest answer, tokens."""
    stop_after: Annotated[int | None, Free, Field(ge=1)] = None
    """End training after so many evaluations without a new best `checkpoint.keep_best_metric`; null never does."""

    @field_validator("shards")
    @classmethod
    def _check_shards(cls, shards: tuple[str, ...]) -> tuple[str, ...]:
        return check_shard_urls(shards)

    @model_validator(mode="after")
    def _check_sets(self) -> Self:
        if bool(self.shards) + bool(self.sets) + self.held_out > 1:
            raise ValueError("evaluation.shards or held_out is one set, evaluation.sets are several; give one of them")
        if not self.is_on and (self.every_steps is not None or self.stop_after is not None):
            raise ValueError("evaluation.every_steps and stop_after need samples; give evaluation.shards or sets")
        return self

    @property
    def is_on(self) -> bool:
        """Whether there is something to evaluate on."""
        return bool(self.shards or self.sets or self.held_out)

    @property
    def named_sets(self) -> dict[str, EvaluationSetConfig]:
        """All sets; the only one has the name ""."""
        if not (self.shards or self.held_out):
            return dict(self.sets)
        return {"": EvaluationSetConfig(shards=self.shards, metrics=self.metrics, max_samples=self.max_samples)}

    def best_metric(self, name: str | None, mode: Literal["max", "min"] | None) -> BestMetric | None:
        """Return what decides which checkpoints are the best; None for the training loss.

        Args:
            name: checkpoint.keep_best_metric.
            mode: checkpoint.keep_best_mode.

        Raises:
            ValueError: such a figure is not measured.
        """
        figures = {
            "/".join(part for part in ("eval", set_name, metric) if part): metric
            for set_name, one in self.named_sets.items()
            for metric in (*one.metrics, "loss")
        }
        if name is None:
            if mode is not None:
                raise ValueError(
                    "checkpoint.keep_best_mode says which values of a metric are better; set keep_best_metric"
                )
            losses = (figure for figure in figures if figure.endswith("/loss"))
            default = None if self.every_steps is None else next(losses, None)
            return None if default is None else BestMetric(default, "min")
        found = [metric for figure, metric in figures.items() if name == figure or name.startswith(f"{figure}_")]
        if not found:
            raise ValueError(
                f"checkpoint.keep_best_metric is {name!r}, but the evaluation measures "
                f"{', '.join(figures) or 'nothing: evaluation has neither shards nor sets'}; choose one of these, or "
                "add the metric to evaluation.metrics"
            )
        return BestMetric(name, mode or ("min" if found[0] in LOWER_IS_BETTER else "max"))

    def is_due(self, next_step: int, *, is_last: bool) -> bool:
        """Whether the steps before this one end with an evaluation."""
        if not self.is_on:
            return False
        return (is_last and self.at_end) or (self.every_steps is not None and next_step % self.every_steps == 0)
