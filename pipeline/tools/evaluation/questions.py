"""What an evaluation asks: samples with the kind of each question, and when an answer counts as right."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from pipeline.index.index import ShardIndex
from pipeline.index.read import Member, read_members
from pipeline.samples.prompt.conversation import Conversation
from pipeline.samples.schema import Sample, parse_sample
from pipeline.samples.strict_json import parse_json

# The first rule whose pattern occurs in the lower-cased question decides. Order matters: "How many images show a red
# shape?" counts.
_KIND_RULES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("statement", re.compile(r"\b(true or false|statement)\b")),
    ("count", re.compile(r"\b(how many|number of|count)\b")),
    ("which_image", re.compile(r"\b(which|what) (image|picture|photo)\b")),
    ("color", re.compile(r"\bcolou?r\b")),
    ("shape", re.compile(r"\bshape\b")),
    ("existence", re.compile(r"^\W*(is|are|does|do|can|has|have)\b")),
)


class EvaluationSample(NamedTuple):
    """A sample and what kind of question each of its user turns asks."""

    sample: Sample
    kinds: tuple[str, ...]
    """One per assistant turn."""


def read_evaluation_samples(index: ShardIndex, max_samples: int | None = None) -> list[EvaluationSample]:
    """Read the usable samples of an index, in order.

    The kinds come from the field `kinds` of the sample's JSON, one name per answer; without it, from the wording.

    Args:
        index: index of the shards.
        max_samples: read no more than this many; None reads all.

    Raises:
        DataError: a sample's bytes are no longer those that were indexed.
        ValueError: `kinds` does not name one kind per answer.
    """
    rows = [int(row) for row in index.usable.nonzero()[0][:max_samples]]
    return [_read(index, row) for row in rows]


def question_kind(question: str) -> str:
    """Guess the kind of a question from its last line; `other` when no rule applies."""
    line = question.strip().rpartition("\n")[2].lower()
    return next((kind for kind, pattern in _KIND_RULES if pattern.search(line)), "other")


def normalize_answer(text: str) -> str:
    """Reduce an answer to what is compared: lower case, single spaces, without a final full stop."""
    return " ".join(text.lower().split()).removesuffix(".").rstrip()


def questions_and_answers(conversation: Conversation) -> list[tuple[str, str]]:
    """Return the text of every user turn with the assistant turn that follows it."""
    spoken = [turn for turn in conversation.turns if turn.role != "system"]
    return [(user.text, assistant.text) for user, assistant in zip(spoken[::2], spoken[1::2], strict=True)]


def _read(index: ShardIndex, row: int) -> EvaluationSample:
    shard = index.shard_of(row).url
    key: str = index.samples["key"][row].as_py()
    members: list[Member] = index.samples["members"][row].as_py()
    content = read_members(shard, key, members)
    sample = parse_sample(key, content, index.checks.policy)
    asked = questions_and_answers(sample.conversation)
    kinds = _given_kinds(content) or tuple(question_kind(question) for question, _ in asked)
    if len(kinds) != len(asked):
        raise ValueError(
            f"{shard}, key {key}: `kinds` names {len(kinds)} question kinds but the conversation has {len(asked)} "
            "answers; give one per answer, or leave the field out"
        )
    return EvaluationSample(sample, kinds)


def _given_kinds(content: Mapping[str, bytes]) -> tuple[str, ...]:
    if "json" not in content:
        return ()
    tree = parse_json(content["json"])
    kinds = tree.get("kinds") if isinstance(tree, dict) else None
    return tuple(str(kind) for kind in kinds) if isinstance(kinds, list) else ()
