"""Multiple-choice questions with their options in another order, so that a habit of answering "A" shows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from pipeline.evaluation.metrics.choice import LETTERS, ROTATION, chosen_option, options_in
from pipeline.evaluation.questions import EvaluationSample
from pipeline.samples.prompt.conversation import Conversation, Turn


def with_listed_options(samples: Sequence[EvaluationSample]) -> list[EvaluationSample]:
    """Fill in the options of samples with one question that lists them."""
    return [
        entry._replace(options=options_in(entry.asked[0][0])) if not entry.options and len(entry.asked) == 1 else entry
        for entry in samples
    ]


def rotations(entry: EvaluationSample) -> Iterator[EvaluationSample]:
    """Yield the question with its options moved on by 1, 2, ... places; none if its text does not list them."""
    options = entry.options
    turns = entry.sample.conversation.turns
    if len(options) < 2 or len(entry.asked) != 1 or options_in(entry.asked[0][0]) != options:
        return
    right = chosen_option(entry.asked[0][1], options)
    answers_by_letter = entry.asked[0][1].strip(" .()").upper() in set(LETTERS)
    for shift in range(1, len(options)):
        moved = options[shift:] + options[:shift]
        asked = Turn(
            "user", tuple(_listing(part, moved) if isinstance(part, str) else part for part in turns[-2].parts)
        )
        answered = turns[-1]
        if answers_by_letter and right is not None:
            answered = Turn("assistant", (LETTERS[(right - shift) % len(options)],))
        sample = entry.sample._replace(
            key=f"{entry.sample.key}{ROTATION}{shift}", conversation=Conversation((*turns[:-2], asked, answered))
        )
        yield entry._replace(sample=sample, options=moved)


def _listing(text: str, options: Sequence[str]) -> str:
    """Put other options into the lines that list them."""
    for letter, option in zip(LETTERS, options, strict=False):
        found = re.search(rf"^\s*\(?{letter}[.):]\s+(.+?)\s*$", text, re.MULTILINE)
        if found is not None:
            text = text[: found.start(1)] + option + text[found.end(1) :]
    return text
