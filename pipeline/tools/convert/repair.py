"""Repairs that a user asked for, applied to the annotation itself: the shards then need no repair at reading."""

from __future__ import annotations

from pipeline.samples.annotation import TURNS, either_field, part_kind
from pipeline.samples.prompt.conversation import split_placeholders
from pipeline.samples.schema import SchemaPolicy
from pipeline.samples.strict_json import JsonValue

_ASSISTANT, _USER = ("gpt", "assistant"), ("human", "user")


def repair_turns(tree: dict[str, JsonValue], policy: SchemaPolicy, *, num_images: int) -> dict[str, JsonValue]:
    """Return the annotation with the repairs of a policy; malformed ones pass through for the schema to refuse."""
    field = either_field(tree, TURNS) or TURNS[0]
    turns = tree.get(field)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return tree
    if policy.drop_leading_answer and turns and _speaker(turns[0]) in _ASSISTANT:
        turns = turns[1:]
    if policy.prepend_missing_placeholder and num_images == 1 and not any(_shows_image(turn) for turn in turns):
        turns = _with_placeholder(turns)
    return {**tree, field: turns}


def _with_placeholder(turns: list[JsonValue]) -> list[JsonValue]:
    first = next((idx for idx, turn in enumerate(turns) if _speaker(turn) in _USER), None)
    if first is None:
        return turns
    turn = turns[first]
    assert isinstance(turn, dict)  # it has a speaker
    name = "value" if "value" in turn else "content"
    content = turn.get(name)
    if isinstance(content, list):
        shown: JsonValue = [{"type": "image"}, *content]
    elif isinstance(content, str):
        shown = f"<image>\n{content}"
    else:
        return turns
    return [*turns[:first], {**turn, name: shown}, *turns[first + 1 :]]


def _speaker(turn: JsonValue) -> JsonValue:
    return turn.get("from", turn.get("role")) if isinstance(turn, dict) else None


def _shows_image(turn: JsonValue) -> bool:
    content = turn.get("value", turn.get("content")) if isinstance(turn, dict) else None
    if isinstance(content, str):
        return any(not isinstance(part, str) for part in split_placeholders(content))
    return isinstance(content, list) and any(isinstance(part, dict) and part_kind(part) != "text" for part in content)
