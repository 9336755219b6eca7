"""Captions against several references: CIDEr, BLEU-4 and ROUGE-L as pycocoevalcap computes them.

Its tokenizer is a Java program. Here words are found by a rule that gives the same words for plain English captions:
lower case, contractions cut, punctuation left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipeline.evaluation.metrics.measured import Floats, Measured, mean_of, unit_of
from pipeline.evaluation.scores import Answer

_CONTRACTION = re.compile(r"(n't|'(?:s|m|d|ll|re|ve))\b")
_WORD = re.compile(r"n't|'(?:s|m|d|ll|re|ve)\b|[^\W_]+(?:[-'.,][^\W_]+)*")


def tokenize_caption(text: str) -> str:
    """Return the words of a caption with single spaces between them."""
    return " ".join(_WORD.findall(_CONTRACTION.sub(r" \1", text.lower())))


def measure_cider(answers: Sequence[Answer]) -> Measured:
    """Return the mean CIDEr-D, times 10 as published; the weights of words come from the references of all answers.

    Raises:
        ValueError: pycocoevalcap is not installed.
    """
    scorer = _scorer("cider")
    references, captions = _corpora(answers)
    _, scores = scorer().compute_score(references, captions)
    return mean_of([unit_of(answer) for answer in answers], [float(score) for score in scores])


def measure_rouge(answers: Sequence[Answer]) -> Measured:
    """Return the mean ROUGE-L.

    Raises:
        ValueError: pycocoevalcap is not installed.
    """
    references, captions = _corpora(answers)
    _, scores = _scorer("rouge")().compute_score(references, captions)
    return mean_of([unit_of(answer) for answer in answers], [float(score) for score in scores])


def measure_bleu(answers: Sequence[Answer]) -> Measured:
    """Return BLEU-4 of the corpus.

    Raises:
        ValueError: pycocoevalcap is not installed.
    """
    scorer = _scorer("bleu.bleu_scorer")(n=4)
    for answer in answers:
        scorer += (tokenize_caption(answer.given), [tokenize_caption(text) for text in answer.accepted])
    rows = []
    for own in scorer.ctest:  # per caption: counts of n-grams, its length, and those of its references
        length = min((abs(other - own["testlen"]), other) for other in own["reflen"])[1]
        rows.append([*own["correct"], *own["guess"], own["testlen"], length])
    totals = np.array(rows, np.float64).reshape(-1, 10)
    return Measured(tuple(map(unit_of, answers)), totals, _bleu, np.array([_bleu(row)[""] for row in totals]))


def _bleu(sums: Floats) -> dict[str, Floats]:
    """Geometric mean of four precisions, smoothed as in pycocoevalcap, times the penalty for brevity."""
    tiny, small = 1e-15, 1e-9
    correct, guessed = sums[..., :4], sums[..., 4:8]
    precision = np.exp(np.log((correct + tiny) / (guessed + small)).mean(axis=-1))
    lengths = (sums[..., 8] + tiny) / (sums[..., 9] + small)
    return {"": precision * np.exp(np.minimum(0, 1 - 1 / lengths))}


def _corpora(answers: Sequence[Answer]) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    references = {idx: [tokenize_caption(text) for text in answer.accepted] for idx, answer in enumerate(answers)}
    return references, {idx: [tokenize_caption(answer.given)] for idx, answer in enumerate(answers)}


def _scorer(name: str) -> Callable[..., Any]:
    try:
        if name == "cider":
            from pycocoevalcap.cider.cider import Cider

            return Cider  # type: ignore[no-any-return]
        if name == "rouge":
            from pycocoevalcap.rouge.rouge import Rouge

            return Rouge  # type: ignore[no-any-return]
        from pycocoevalcap.bleu.bleu_scorer import BleuScorer

        return BleuScorer  # type: ignore[no-any-return]
    except ImportError:
        raise ValueError("cider, bleu and rouge need pycocoevalcap; run: pip install 'ray-llava[captions]'") from None
