"""All metrics by name."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.evaluation.metrics import captions, choice, likelihood, text, vqa, yes_no
from pipeline.evaluation.metrics.measured import Metric, mean_metric

_ALL = (
    mean_metric("exact_match", "equals a reference, without case and final full stop", text.exact_match),
    mean_metric("vqa_accuracy", "VQAv2: agrees with three of ten people, field `answers`", vqa.vqa_accuracy),
    mean_metric("multiple_choice", "names the right option", choice.multiple_choice),
    Metric("multiple_choice_circular", "MMBench: right in every rotation of the options", choice.measure_circular),
    Metric("pope", "yes or no: accuracy, precision, recall, F1, yes-ratio", yes_no.measure_pope),
    Metric("mme", "MME: points over pairs of yes-no questions", yes_no.measure_mme),
    mean_metric("relaxed_accuracy", "ChartQA: numbers within 5 %", text.relaxed_accuracy),
    mean_metric("anls", "DocVQA: similarity of letters, 0 below one half", text.anls),
    mean_metric("box_accuracy", "RefCOCO: boxes overlap by at least one half", text.box_accuracy),
    Metric("cider", "captions: CIDEr-D", captions.measure_cider),
    Metric("bleu", "captions: BLEU-4", captions.measure_bleu),
    Metric("rouge", "captions: ROUGE-L", captions.measure_rouge),
    Metric("perplexity", "of the reference answers", likelihood.measure_perplexity, "min", reads_answers=False),
    Metric("loss", "cross-entropy per token of the reference answers", likelihood.measure_loss, "min", False),
)
METRICS = {metric.name: metric for metric in _ALL}


def find_metrics(names: Iterable[str]) -> tuple[Metric, ...]:
    """Look up metrics that the config allows, each once."""
    return tuple(METRICS[name] for name in dict.fromkeys(names))
