"""What an evaluation asks: samples with the kind of each question, and when an answer counts as right."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError, Reason
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
    references: tuple[str, ...] = ()
    """Accepted answers of a sample with one question, as several people gave them; empty for the conversation's own."""
    options: tuple[str, ...] = ()
    """Options of a sample with one multiple-choice question; empty if there are none, or if the question lists them."""
    group: str = ""
    """Samples of a group are scored together."""

    @property
    def asked(self) -> list[tuple[str, str]]:
        """The text of every question with the answer that the conversation gives."""
        return questions_and_answers(self.sample.conversation)


def read_evaluation_samples(
    index: ShardIndex, max_samples: int | None = None, chosen: npt.NDArray[np.bool_] | None = None
) -> list[EvaluationSample]:
    """Read the usable samples of an index, in order.

    The kinds come from the field `kinds` of the sample's JSON, one name per answer; without it, from the wording.

    Args:
        index: index of the shards.
        max_samples: read no more than this many; None reads all.
        chosen: bool, a row of the index each; None takes all.

    Raises:
        DataError: a sample's bytes are no longer those that were indexed.
        ValueError: `kinds` does not name one kind per answer.
    """
    usable = index.usable if chosen is None else index.usable & chosen
    rows = [int(row) for row in usable.nonzero()[0][:max_samples]]
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
    if sample.is_film:
        raise DataError(Reason.MEDIA_UNREAD, "a video file; evaluation shows stored frames only", shard=shard, key=key)
    try:
        return describe(sample, parse_json(content["json"]) if "json" in content else None)
    except ValueError as error:
        raise ValueError(f"{shard}, key {key}: {error}") from None


def describe(sample: Sample, tree: object) -> EvaluationSample:
    """Add what the fields `kinds` (or `category`), `answers`, `options` and `group` of a sample's JSON say.

    Args:
        sample: a conversation; a caption is what answers an empty question.
        tree: the JSON, if the sample has one.

    Raises:
        ValueError: a field does not fit the conversation.
    """
    fields = tree if isinstance(tree, dict) else {}
    asked = questions_and_answers(sample.conversation)
    category = (str(fields["category"]),) * len(asked) if "category" in fields else ()
    kinds = _texts(fields, "kinds") or category or tuple(question_kind(question) for question, _ in asked)
    if len(kinds) != len(asked):
        raise ValueError(
            f"`kinds` names {len(kinds)} question kinds but the conversation has {len(asked)} answers; give one per "
            "answer, or leave the field out"
        )
    references, options = _texts(fields, "answers"), _texts(fields, "options") or _texts(fields, "choices")
    for name, found in (("answers", references), ("options", options)):
        if found and len(asked) != 1:
            raise ValueError(
                f"`{name}` belongs to one question but the conversation has {len(asked)}; split the sample"
            )
    return EvaluationSample(sample, kinds, references, options, str(fields.get("group", "")))


def _texts(fields: Mapping[str, object], name: str) -> tuple[str, ...]:
    """Read a list of texts; entries of VQA files are objects with the text in `answer`."""
    found = fields.get(name)
    if not isinstance(found, list):
        return ()
    return tuple(str(entry.get("answer", "")) if isinstance(entry, dict) else str(entry) for entry in found)
